"""What every request handler needs: database, files, the door in, limits, and how to reach them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import anyio
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from dicom_node.errors import NotFound
from dicom_node.limited import LimitedPool
from dicom_node.pressure import Pressure
from dicom_node.readiness import Problem
from dicom_node.receive import Receiver
from dicom_node.settings import NodeSettings
from dicom_node.uids import checked_uid
from dicom_node.web.frames import Layouts
from dicom_node.web.login.doorkeeper import Doorkeeper
from dicom_node.web.media_types import DICOM_JSON, JSON
from dicom_node.web.metadata import DICOM_WEB, MetadataCache, instance_address
from storage.database import Database, Transaction
from storage.files import FileStore
from storage.index import find_study
from storage.retrieval import KeptInstance, kept_instances

__all__ = ["DICOM_WEB", "instance_address"]

PRIVATE: Final = {"Cache-Control": "private, max-age=3600"}
FRESH: Final = {"Cache-Control": "private, no-cache"}
RESEARCH_USE: Final = "Research use only. Not a medical device."


@dataclass(frozen=True)
class WebServices:
    """Held by the app, read by the handlers."""

    database: Database
    files: FileStore
    receiver: Receiver
    settings: NodeSettings
    readiness_checks: Sequence[Callable[[], list[Problem]]]
    uploads: anyio.CapacityLimiter  # bodies read at the same time; others wait
    pressure: Pressure
    decoders: LimitedPool
    layouts: Layouts
    metadata: MetadataCache
    doorkeeper: Doorkeeper | None  # None: nobody is asked who they are

    def close(self) -> None:
        """End the processes that decode, and the threads; the database is its opener's to close."""
        self.decoders.close()
        self.receiver.close()


def services_of(request: HTTPConnection) -> WebServices:
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


def instances_at(request: Request, tx: Transaction) -> list[KeptInstance]:
    """Return the instances that the request's address names: of a study, of a series, or one.

    Raises
    ------
    NotFound
        If there are none.
    """
    named = [
        uid_in_path(request, level) if level in request.path_params else None
        for level in ("series", "instance")
    ]
    found = kept_instances(tx, uid_in_path(request, "study"), *named)
    if not found:
        raise NotFound("no instance of this address is stored here")
    return found


def require_study(tx: Transaction, study_instance_uid: str) -> None:
    """Raise NotFound unless the study is here."""
    if find_study(tx, study_instance_uid) is None:
        raise NotFound("no study of this UID is stored here")


def json_response(content: object, status: int = 200, media_type: str = JSON) -> Response:
    """Answer with JSON; NaN is refused, since no JSON parser reads it."""
    body = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Response(body.encode("utf-8"), status, FRESH, media_type)


def dicom_json_response(content: object, status: int = 200) -> Response:
    """Answer with DICOM JSON."""
    return json_response(content, status, DICOM_JSON)
