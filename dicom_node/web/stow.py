"""STOW-RS: store instances.

The body is read as it comes, part by part, straight into the one door in; every part gets its own result.
Addresses inside a data set are never followed.

Source: PS3.18 10.5, Tables 10.5.3-1 (statuses) and I.2 (store instances response).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from pydicom.dataset import FileMetaDataset
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dicom_node.errors import (
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    IndexUnavailable,
    NodeError,
    RequestRefused,
    Unparseable,
    UnsupportedMediaType,
)
from dicom_node.header import MAX_META_BYTES, META_START, MIB, split_meta
from dicom_node.receive import (
    MAX_UID_CHARACTERS,
    UID_FORM,
    ExpectedUids,
    Received,
    checked_uid,
)
from dicom_node.web.media_types import DICOM, DICOM_JSON, MULTIPART, MediaType, parse_media_type, part_type
from dicom_node.web.multipart import MultipartLimits, MultipartReader, Part
from dicom_node.web.qido import require_json
from dicom_node.web.services import (
    DICOM_WEB,
    WebServices,
    dicom_json_response,
    services_of,
    uid_in_path,
)
from dicom_node.web.stow_metadata import DescribedInstance, read_described
from storage.index import Origin, request_completion
from storage.records import VALUE_ERRORS

SILENCE_S: Final = 30.0  # a body that brings nothing for so long is given up
MIN_BYTES_PER_S: Final = 1024  # on average, once it has taken so long
REQUESTED_BY: Final = "STOW-RS request"
ORIGIN_KIND: Final = "STOW-RS"


@dataclass(frozen=True)
class _Failure:
    """A part that was not stored, and what it said it was."""

    error: NodeError
    sop_class_uid: str
    sop_instance_uid: str


@dataclass
class _Outcome:
    """What became of the parts of one request."""

    stored: list[Received] = field(default_factory=list)
    failures: list[_Failure] = field(default_factory=list)


class _Ended(Exception):
    """The body is not read any further; why is among the failures."""


class _Remembered:
    """A part's content on its way to the door; its beginning is kept to say what a refused part was."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.head = b""

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if len(self.head) < META_START + MAX_META_BYTES:
                self.head += chunk[: META_START + MAX_META_BYTES]
            yield chunk


async def store_instances(request: Request) -> Response:
    """Answer POST .../studies and .../studies/{study}."""
    require_json(request)
    services = services_of(request)
    kind = parse_media_type(request.headers.get("content-type", ""))
    study = uid_in_path(request, "study") if "study" in request.path_params else None
    _refuse_early(request, kind, services)
    stream = aiter(request.stream())

    async def next_chunk() -> bytes:
        with anyio.fail_after(SILENCE_S):
            return await anext(stream, b"")

    def chunks() -> Iterator[bytes]:
        pace = _Pace()
        while True:
            try:
                chunk = anyio.from_thread.run(next_chunk)
            except TimeoutError as error:
                raise BodyTooSlow(f"nothing came for {SILENCE_S:.0f} seconds") from error
            except ClientDisconnect as error:
                raise Unparseable("the client broke off") from error
            if not chunk:
                return
            pace.count(len(chunk))
            yield chunk

    return await anyio.to_thread.run_sync(_store, services, kind, chunks(), study, limiter=services.uploads)


class _Pace:
    """How quickly a body comes; one that drips holds a thread and a file."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._total = 0

    def count(self, size: int) -> None:
        """Note some bytes; raises BodyTooSlow."""
        self._total += size
        seconds = time.monotonic() - self._started
        if seconds > SILENCE_S and self._total < seconds * MIN_BYTES_PER_S:
            raise BodyTooSlow(f"the body comes with less than {MIN_BYTES_PER_S} bytes a second")


def _refuse_early(request: Request, kind: MediaType, services: WebServices) -> None:
    """Refuse by the headers what need not be read."""
    of_parts = MediaType(part_type(kind), {})
    is_multipart = kind.essence == MULTIPART and (of_parts.covers(DICOM) or of_parts.covers(DICOM_JSON))
    if not is_multipart and kind.essence != DICOM:
        raise UnsupportedMediaType(f"bodies of type {kind.essence} are not taken here")
    problem = services.pressure.soft_problem()
    if problem is not None and services.pressure.hard_problem() is None:  # full is told for each instance
        raise IndexUnavailable(problem)
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit():
        raise BadRequest("Content-Length is not a number")
    if int(announced) > _max_body_bytes(services):
        raise BodyTooLarge(f"the body announces {announced} bytes")


def _max_body_bytes(services: WebServices) -> int:
    return services.settings.http.max_body_mb * MIB


def _store(services: WebServices, kind: MediaType, chunks: Iterator[bytes], study: str | None) -> Response:
    outcome = _Outcome()
    limits = MultipartLimits(_max_body_bytes(services))
    try:
        if kind.essence == MULTIPART:
            reader = MultipartReader(chunks, kind.parameters.get("boundary", ""), limits)
            _store_parts(services, kind, reader, study, outcome)
        else:
            _store_part(services, Part({}, _bounded(chunks, limits.max_body_bytes)), study, outcome)
    except _Ended:
        pass
    except RequestRefused as error:  # what came before it is stored, and is told
        if not outcome.stored:
            raise
        outcome.failures.append(_Failure(error, "", ""))
    if not outcome.stored and not outcome.failures:
        raise BadRequest("the body holds no instance")
    _request_completion(services, outcome)
    return dicom_json_response(_render(outcome, study), _status(outcome))


def _store_parts(
    services: WebServices, kind: MediaType, reader: MultipartReader, study: str | None, outcome: _Outcome
) -> None:
    if part_type(kind) == DICOM_JSON:
        for described in read_described(reader.parts()):
            _store_described(services, described, study, outcome)
        return
    for part in reader.parts():
        _store_part(services, part, study, outcome)


def _store_described(
    services: WebServices, described: DescribedInstance, study: str | None, outcome: _Outcome
) -> None:
    try:
        expected = ExpectedUids(study_instance_uid=study)
        content = [described.encode()]
        outcome.stored.append(services.receiver.receive_part10(content, Origin(ORIGIN_KIND, ""), expected))
    except NodeError as error:
        uids = [
            uid if UID_FORM.fullmatch(uid) and len(uid) <= MAX_UID_CHARACTERS else ""
            for uid in (described.sop_class_uid, described.sop_instance_uid)
        ]
        outcome.failures.append(_Failure(error, *uids))


def _bounded(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > max_bytes:
            raise BodyTooLarge(f"the body is larger than {max_bytes} bytes")
        yield chunk


def _store_part(services: WebServices, part: Part, study: str | None, outcome: _Outcome) -> None:
    content = _Remembered(part.body)
    try:
        kind = parse_media_type(part.headers.get("content-type", DICOM))
        if not kind.covers(DICOM):
            raise UnsupportedMediaType(f"parts of type {kind.essence} are not taken here")
        expected = ExpectedUids(study_instance_uid=study)
        outcome.stored.append(services.receiver.receive_part10(content, Origin(ORIGIN_KIND, ""), expected))
    except (BodyTooLarge, BodyTooSlow) as error:
        if not outcome.stored:
            raise
        outcome.failures.append(_failure(error, content.head))
        raise _Ended from error
    except NodeError as error:
        outcome.failures.append(_failure(error, content.head))


def _failure(error: NodeError, head: bytes) -> _Failure:
    try:
        meta, _end = split_meta(head)
        return _Failure(
            error, _uid(meta, "MediaStorageSOPClassUID"), _uid(meta, "MediaStorageSOPInstanceUID")
        )
    except (NodeError, *VALUE_ERRORS):
        return _Failure(error, "", "")


def _uid(meta: FileMetaDataset, keyword: str) -> str:
    return str(checked_uid(meta.get(keyword), keyword))


def _request_completion(services: WebServices, outcome: _Outcome) -> None:
    """One request brings one study, as far as its sender has it: there is nothing to wait for.

    Of several studies in one request with failures nobody knows which is incomplete: those become quiet.
    """
    studies = sorted({received.study_instance_uid for received in outcome.stored})
    if outcome.failures and len(studies) != 1:
        return
    with services.database.transaction() as tx:
        for study in studies:
            request_completion(tx, study, REQUESTED_BY, missing=len(outcome.failures))


def _status(outcome: _Outcome) -> int:
    if not outcome.failures:
        return 200
    if outcome.stored:
        return 202
    statuses = {failure.error.http_status for failure in outcome.failures}
    return statuses.pop() if len(statuses) == 1 else 409


def _render(outcome: _Outcome, study: str | None) -> dict[str, Any]:
    studies = {received.study_instance_uid for received in outcome.stored}
    answer: dict[str, Any] = {}
    if study is not None or len(studies) == 1:
        answer["00081190"] = _element("UR", f"{DICOM_WEB}/studies/{study or studies.pop()}")
    if outcome.failures:
        answer["00081198"] = {"vr": "SQ", "Value": [_failed_item(failure) for failure in outcome.failures]}
    if outcome.stored:
        answer["00081199"] = {"vr": "SQ", "Value": [_stored_item(received) for received in outcome.stored]}
    return answer


def _stored_item(received: Received) -> dict[str, Any]:
    address = (
        f"{DICOM_WEB}/studies/{received.study_instance_uid}/series/{received.series_instance_uid}"
        f"/instances/{received.sop_instance_uid}"
    )
    return {
        "00081150": _element("UI", received.sop_class_uid),
        "00081155": _element("UI", received.sop_instance_uid),
        "00081190": _element("UR", address),
    }


def _failed_item(failure: _Failure) -> dict[str, Any]:
    item = {"00081197": _element("US", failure.error.stow_failure_reason)}
    if failure.sop_class_uid:
        item["00081150"] = _element("UI", failure.sop_class_uid)
        item["00081155"] = _element("UI", failure.sop_instance_uid)
    item["00000902"] = _element("LO", f"{failure.error}. {failure.error.advice}")
    return dict(sorted(item.items()))


def _element(vr: str, value: object) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}
