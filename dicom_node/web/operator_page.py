"""The operator's page: what came, what was made of it, and what went wrong; no script, no patient names."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from dicom_node.web.corrections import by_model, corrections_table
from dicom_node.web.operations import study_line
from dicom_node.web.services import FRESH, RESEARCH_USE, services_of
from storage.jobs import JobState, failed_jobs
from storage.tables import Delivery, Job, Study
from storage.worklist import stuck_deliveries

STUDIES_SHOWN: Final = 100
REFRESH_S: Final = 5
PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem;
  padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.4rem } h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere }
article { border: 1px solid #d0d7de; border-radius: 6px; padding: .8rem 1rem; margin: 1rem 0 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .8rem .25rem 0 }
th { font-weight: 600; color: #57606a } td { vertical-align: top; overflow-wrap: anywhere }
.notice { color: #57606a } .bad { color: #a40e26 }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3 } article { border-color: #30363d }
  th, .notice { color: #9198a1 } a { color: #58a6ff } .bad { color: #ff7b72 }
}
"""

_WAY_OUT: Final = ' · <a href="/login">Log out</a>'

JsonObject = dict[str, Any]


def show_operator_page(request: Request) -> Response:
    """Answer GET /operator."""
    with services_of(request).database.reading() as tx:
        order = (Study.last_received_at.desc(), Study.study_instance_uid)
        rows = tx.scalars(select(Study).order_by(*order).limit(STUDIES_SHOWN)).all()
        lines = [study_line(tx, row) for row in rows]
        stuck = stuck_deliveries(tx)
        failed = [tx.get_one(Job, job_id) for job_id in failed_jobs(tx, STUDIES_SHOWN)]
        judged = corrections_table(by_model(tx))
        notes = {row.study_instance_uid: row.identity_note for row in rows if row.identity_note}
    checks = services_of(request).readiness_checks
    problems = [problem.sentence for check in checks for problem in check()]
    headers = FRESH | {"Content-Security-Policy": PAGE_POLICY}
    told = _failed(failed) + _stuck(stuck) + "".join(map(_identity, notes.items())) + judged
    way_out = _WAY_OUT if services_of(request).doorkeeper is not None else ""
    return HTMLResponse(_page(lines, problems, told, way_out), 200, headers)


def show_style(request: Request) -> Response:
    """Answer GET /operator/style.css."""
    del request
    return Response(STYLE, 200, FRESH, "text/css; charset=utf-8")


def _page(studies: list[JsonObject], problems: list[str], told: str = "", way_out: str = "") -> str:
    warnings = "".join(f'<p class="bad">Not ready: {escape(problem)}</p>' for problem in problems)
    articles = "".join(map(_study, studies)) or "<p>Nothing has been received yet.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<title>SIM4SEG node</title><link rel="stylesheet" href="/operator/style.css"></head>'
        f'<body><h1>SIM4SEG node</h1><p class="notice">{RESEARCH_USE} '
        '<a href="/">Viewer</a> · <a href="/health/ready">Health</a> · <a href="/metrics">Metrics</a> · '
        f'<a href="/api/studies">JSON</a>{way_out}</p>{warnings}{told}{articles}</body></html>'
    )


def _failed(jobs: Sequence[Job]) -> str:
    """Dead letters that nobody asked for again, the oldest first."""
    rows = "".join(
        _row(
            (job.job_id, job.study_instance_uid, job.rule, job.model, job.attempts, job.reason or ""),
            _button(f"/api/jobs/{job.job_id}/requeue", "Run again"),
        )
        for job in jobs
    )
    names = ("Job", "Study", "Rule", "Model", "Tries", "Why", "")
    return _waiting("Jobs that failed", names, rows, "dicom-node requeue JOB, or --all-failed for all")


def _stuck(deliveries: Sequence[Delivery]) -> str:
    """What waits for a person at a destination."""
    rows = "".join(
        _row(
            (row.delivery_id, row.state, row.destination, row.last_status or "", row.attempts, row.reason),
            _button(f"/api/deliveries/{row.delivery_id}/redeliver", "Send again"),
        )
        for row in deliveries
    )
    names = ("Delivery", "State", "Destination", "Answer", "Tries", "What to do", "")
    title, command = "Deliveries that wait for somebody", "dicom-node redeliver DELIVERY, or --failed for all"
    return _waiting(title, names, rows, command)


def _waiting(title: str, names: Sequence[str], rows: str, command: str) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<article><h2 class="bad">{title}</h2><table><tr>{head}</tr>{rows}</table>'
        f'<p class="notice">On the command line: {command}.</p></article>'
    )


def _row(cells: Sequence[object], button: str) -> str:
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + f"<td>{button}</td></tr>"


def _button(action: str, words: str) -> str:
    return f'<form method="post" action="{escape(action)}"><button>{words}</button></form>'


def _identity(note: tuple[str, str | None]) -> str:
    uid, words = note
    return f'<p class="bad">{escape(uid)}: {escape(words or "")}</p>'


def _study(study: JsonObject) -> str:
    uid = escape(study["study_instance_uid"])
    origins = ", ".join(
        f"{origin['instances']} by {escape(origin['kind'])}"
        + (f" from {escape(origin['from'])}" if origin["kind"] == "DIMSE" else "")
        for origin in study["origins"]
    )
    return (
        f'<article><h2><a href="{escape(study["viewer"])}">{uid}</a></h2>'
        f"<p>{escape(study['state'])}, version {study['version']}, "
        f"last image {_time(study['last_received_at'])}. "
        f"Instances: {origins}. Outcome: {escape(study['outcome'] or 'none yet')}. "
        f'<a href="/ask?StudyInstanceUIDs={uid}">Ask</a> · '
        f'<a href="/api/studies/{uid}">Details</a></p>{_jobs(study["jobs"])}</article>'
    )


def _jobs(jobs: list[JsonObject]) -> str:
    if not jobs:
        return ""
    names = ("Job", "State", "Outcome", "Result", "Rule", "Model", "Tries", "Why")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(map(_job, jobs))}</table>"


def _job(job: JsonObject) -> str:
    is_at_work = job["state"] == JobState.IN_PROGRESS and job["images_done"]
    cells = (
        f"{job['state']}, {job['images_done']} of {job['images_all']} images" if is_at_work else job["state"],
        job["outcome"] or "",
        _result(job["summary"] or {}),
        job["rule"],
        job["model"],
        job["attempts"],
        job["reason"] or "",
    )
    link = f'<a href="/api/jobs/{escape(job["job_id"])}">{escape(job["job_id"][:8])}</a>'
    mark = ' class="bad"' if job["outcome"] == "FAILED" else ""
    return f"<tr{mark}><td>{link}</td>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _result(summary: JsonObject) -> str:
    """What the model said, in a few words: diagnosis with its confidence, what is outlined."""
    diagnosis, confidence = summary.get("diagnosis"), summary.get("confidence")
    said = [f"{diagnosis} ({confidence:.2f})"] if diagnosis and confidence is not None else []
    said += [summary["conclusion_label"]] if summary.get("conclusion_label") else []
    is_outlined = (summary.get("sop_instance_uids") or {}).get("seg") is not None
    if is_outlined:
        said.append(f"{summary.get('target') or 'region'} outlined")
    return ", ".join(said)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
