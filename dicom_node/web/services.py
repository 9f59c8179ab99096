"""What every request handler needs: database, files, the door in, limits, and how to reach them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import anyio
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.errors import NotFound
from dicom_node.receive import Receiver, checked_uid
from dicom_node.settings import NodeSettings
from dicom_node.web.media_types import DICOM_JSON, JSON
from storage.database import Database, Transaction
from storage.index import find_instance, find_study, instances_of_series, instances_of_study
from storage.tables import Instance

DICOM_WEB: Final = "/dicom-web"
PRIVATE: Final = {"Cache-Control": "private, max-age=3600"}
FRESH: Final = {"Cache-Control": "private, no-cache"}
RESEARCH_USE: Final = "Research use only. Not a medical device."


@dataclass(frozen=True)
class WebServices:
    """Held by the app, read by the handlers."""

    database: Database
    receiver: Receiver
    settings: NodeSettings
    readiness_checks: Sequence[Callable[[], list[str]]]
    uploads: anyio.CapacityLimiter  # bodies read at the same time; others wait

    @property
    def files_root(self) -> Path:
        """Folder that the paths of instances are relative to."""
        return self.settings.storage.files_root


def services_of(request: Request) -> WebServices:
    """Return the app's services."""
    return cast("WebServices", request.app.state.services)


def uid_in_path(request: Request, name: str) -> str:
    """Return a UID of the request's address.

    Raises
    ------
    IllegalUid
        If it has not the form of one.
    """
    return str(checked_uid(request.path_params[name], f"{name} in the address"))


def instances_at(request: Request, tx: Transaction) -> list[Instance]:
    """Return the instances that the request's address names: of a study, of a series, or one.

    Raises
    ------
    NotFound
        If there are none.
    """
    study = uid_in_path(request, "study")
    found: Sequence[Instance]
    if "instance" in request.path_params:
        instance = find_instance(tx, uid_in_path(request, "instance"))
        found = [instance] if instance is not None else []
    elif "series" in request.path_params:
        found = instances_of_series(tx, uid_in_path(request, "series"))
    else:
        found = instances_of_study(tx, study)
    series = request.path_params.get("series")
    here = [
        row for row in found if row.study_instance_uid == study and series in (None, row.series_instance_uid)
    ]
    if not here:
        raise NotFound("no instance of this address is stored here")
    return here


def require_study(tx: Transaction, study_instance_uid: str) -> None:
    """Raise NotFound unless the study is here."""
    if find_study(tx, study_instance_uid) is None:
        raise NotFound("no study of this UID is stored here")


def instance_address(row: Instance) -> str:
    """Absolute path of one instance under the DICOMweb root."""
    return (
        f"{DICOM_WEB}/studies/{row.study_instance_uid}"
        f"/series/{row.series_instance_uid}/instances/{row.sop_instance_uid}"
    )


def json_response(content: object, status: int = 200, media_type: str = JSON) -> Response:
    """Answer with JSON; NaN is refused, since no JSON parser reads it."""
    body = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Response(body.encode("utf-8"), status, FRESH, media_type)


def dicom_json_response(content: object, status: int = 200) -> Response:
    """Answer with DICOM JSON."""
    return json_response(content, status, DICOM_JSON)


def json_array(items: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """Render a JSON array item by item, so that a long one is never held whole."""
    opening = b"["
    for item in items:
        yield opening + json.dumps(item, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        opening = b","
    yield b"]" if opening == b"," else b"[]"
