"""How people judged our results, by model: over HTTP, and as a table of the operator's page.

Who a person is stays in the database; which AE sent the object is said. No patient attribute leaves here.
"""

import json
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from dicom_node.web.operations import page_of
from dicom_node.web.services import json_response, services_of
from storage.corrections import Count, Verdict, correction_counts, list_corrections
from storage.database import Transaction
from storage.tables import Correction

COUNTED: Final = (Verdict.ACCEPTED, Verdict.MODIFIED, Verdict.REJECTED)

JsonObject = dict[str, Any]


def show_corrections(request: Request) -> Response:
    """Answer GET /api/corrections: counts by model and version, then what came, the newest first."""
    limit, offset = page_of(request)
    with services_of(request).database.reading() as tx:
        rows = list_corrections(tx, limit=limit, offset=offset)
        return json_response({"models": by_model(tx), "corrections": [_line(row) for row in rows]})


def by_model(tx: Transaction) -> list[JsonObject]:
    """How often the results of each model version were accepted, modified and rejected."""
    found: dict[tuple[str, str], JsonObject] = {}
    for each in correction_counts(tx):
        line = found.setdefault((each.model, each.model_version), _empty(each))
        line[each.verdict.lower()] += each.count
    return list(found.values())


def corrections_table(lines: Sequence[JsonObject]) -> str:
    """The table of the operator's page; nothing where nobody has judged yet."""
    if not lines:
        return ""
    names = ("Model", "Version", *(verdict.capitalize() for verdict in COUNTED))
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(f"<tr>{''.join(map(_cell, line.values()))}</tr>" for line in lines)
    return (
        f"<article><h2>What people made of our results</h2><table><tr>{head}</tr>{rows}</table>"
        '<p class="notice"><a href="/api/corrections">Each of them</a>, with Dice against ours.</p></article>'
    )


def _cell(value: object) -> str:
    return f"<td>{escape(str(value))}</td>"


def _empty(count: Count) -> JsonObject:
    line: JsonObject = {"model": count.model, "model_version": count.model_version}
    return line | {verdict.lower(): 0 for verdict in COUNTED}


def _line(row: Correction) -> JsonObject:
    names = (
        "sop_instance_uid", "study_instance_uid", "verdict", "sender", "received_at", "judged_at",
        "result_uid", "job_id", "model", "model_version", "matched_by",
    )  # fmt: skip
    values = {name: getattr(row, name) for name in names}
    return values | {"dice": json.loads(row.dice) if row.dice else None}
