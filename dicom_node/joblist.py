"""The jobs of a node as plain values, as a table for people, and asking again for those that failed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage import worklist
from storage.database import Database
from storage.errors import IllegalTransition, InstanceMissing
from storage.jobs import failed_jobs, requeue_job
from storage.tables import Job

MAX_JOBS = 10_000
WIDTHS = (34, 13, 14, 22, 7, 0)


@dataclass(frozen=True)
class Asked:
    """What became of asking again: new jobs by the id of the failed one, and a sentence for each refusal."""

    made: dict[str, str]
    refused: list[str]


def plain_jobs(database: Database, *, is_failed_only: bool = False) -> list[dict[str, Any]]:
    """Every job, or only the dead letters, newest first, without a patient attribute."""
    with database.reading() as tx:
        rows = worklist.newest_jobs(tx, limit=MAX_JOBS)
        failed = set(failed_jobs(tx)) if is_failed_only else set()
        return [_values(row) for row in rows if not is_failed_only or row.job_id in failed]


def requeue_jobs(database: Database, job_ids: Sequence[str] | None, *, by: str) -> Asked:
    """Ask again for these failed jobs, or for every dead letter; each in a transaction of its own."""
    asked = Asked({}, [])
    if job_ids is None:
        with database.reading() as tx:
            job_ids = failed_jobs(tx)
    for job_id in job_ids:
        try:
            with database.transaction() as tx:
                asked.made[job_id] = requeue_job(tx, job_id, by)
        except (IllegalTransition, InstanceMissing) as error:
            asked.refused.append(str(error))
    return asked


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
