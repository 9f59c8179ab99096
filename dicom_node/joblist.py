"""The jobs of a node as plain values, and as a table for people."""

import json
from typing import Any

from storage import worklist
from storage.database import Database
from storage.tables import Job

MAX_JOBS = 10_000
WIDTHS = (34, 13, 14, 22, 7, 0)


def list_jobs(database: Database) -> list[dict[str, Any]]:
    """Every job, newest first, without a patient attribute."""
    with database.reading() as tx:
        rows = worklist.list_jobs(tx, limit=MAX_JOBS)
    return [_values(row) for row in rows]


def _values(job: Job) -> dict[str, Any]:
    values = {column.key: getattr(job, column.key) for column in Job.__table__.columns}
    return {**values, "summary": json.loads(job.summary) if job.summary else None}


def table_of_jobs(rows: list[dict[str, Any]]) -> str:
    """One line a job."""
    head = _line("JOB", "STATE", "OUTCOME", "RULE", "TRIES", "STUDY / REASON")
    return "\n".join([head, *map(_line_of, rows)])


def _line_of(row: dict[str, Any]) -> str:
    study = row["study_instance_uid"] + (f" / {row['reason']}" if row["reason"] else "")
    return _line(row["job_id"], row["state"], row["outcome"] or "-", row["rule"], str(row["attempts"]), study)


def _line(*cells: str) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()
