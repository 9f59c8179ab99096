"""The jobs of a node as plain values, and as a table for people."""

import json
from typing import Any

from sqlalchemy import select

from storage.database import Database
from storage.tables import Job

MAX_JOBS = 10_000


def list_jobs(database: Database) -> list[dict[str, Any]]:
    """Every job, newest first, without a patient attribute."""
    with database.reading() as tx:
        rows = tx.scalars(select(Job).order_by(Job.created_at.desc(), Job.job_id).limit(MAX_JOBS)).all()
    return [_values(row) for row in rows]


def _values(job: Job) -> dict[str, Any]:
    values = {column.key: getattr(job, column.key) for column in Job.__table__.columns}
    return {**values, "summary": json.loads(job.summary) if job.summary else None}


def table_of_jobs(rows: list[dict[str, Any]]) -> str:
    """One line a job."""
    lines = [f"{'JOB':<34}{'STATE':<13}{'OUTCOME':<14}{'RULE':<22}{'TRIES':<7}STUDY / REASON"]
    lines += [
        f"{row['job_id']:<34}{row['state']:<13}{row['outcome'] or '-':<14}{row['rule']:<22}{row['attempts']:<7}"
        f"{row['study_instance_uid']}{' / ' + row['reason'] if row['reason'] else ''}"
        for row in rows
    ]
    return "\n".join(lines)
