"""STOW-RS: store instances.

The body is read as it comes, part by part, straight into the one door in. Every part gets its own result;
parts that come one after the other become durable together, and the answer goes out after that. Addresses
inside a data set are never followed.

Source: PS3.18 10.5, Tables 10.5.3-1 (statuses) and I.2 (store instances response).
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import anyio
from starlette.requests import Request
from starlette.responses import Response

from dicom_node.announced import ExpectedUids
from dicom_node.audit.web import stowed
from dicom_node.errors import (
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    IndexUnavailable,
    NodeError,
    RequestRefused,
    UnsupportedMediaType,
)
from dicom_node.gathering import Gathering
from dicom_node.header import MAX_META_BYTES, META_START, MIB, split_meta_uids
from dicom_node.received import Received
from dicom_node.uids import MAX_UID_CHARACTERS, UID_FORM, checked_uid
from dicom_node.web.body import Body
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

TOGETHER: Final = 32  # instances that become durable at once, and open files meanwhile
REQUESTED_BY: Final = "STOW-RS request"
ORIGIN_KIND: Final = "STOW-RS"


@dataclass(frozen=True)
class _Failure:
    """A part that was not stored, and what it said it was."""

    error: NodeError
    sop_class_uid: str
    sop_instance_uid: str


class _Outcome:
    """What became of the parts of one request; use it in a `with`."""

    def __init__(self, services: WebServices) -> None:
        self.stored: list[Received] = []
        self.failures: list[_Failure] = []
        self._receiver = services.receiver
        self._gathering = Gathering(services.receiver)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was, or can still be, stored."""
        return not self.stored and not self._gathering

    def take(self, content: Iterable[bytes | memoryview], study: str | None) -> None:
        """Take one instance, which becomes durable later; raises InstanceRefused, NodeUnable."""
        origin, expected = Origin(ORIGIN_KIND, ""), ExpectedUids(study_instance_uid=study)
        self._gathering.take(self._receiver.begin_part10(content, origin, expected))
        if len(self._gathering) >= TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Have all that was taken durable and indexed, and note what became of each."""
        for each in self._gathering.settle():
            if isinstance(each, Received):
                self.stored.append(each)
            else:
                uids = each.announced.sop_class_uid, each.announced.sop_instance_uid
                self.failures.append(_Failure(each.error, *uids))

    def __enter__(self) -> Self:
        self._gathering.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gathering.__exit__(kind, error, trace)


class _Ended(Exception):
    """The body is not read any further; why is among the failures."""


class _Remembered:
    """A part's content on its way to the door; its beginning is kept to say what a refused part was."""

    def __init__(self, chunks: Iterator[bytes | memoryview]) -> None:
        self._chunks = chunks
        self.head = b""

    def __iter__(self) -> Iterator[bytes | memoryview]:
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
    body = Body(aiter(request.stream()))
    reading = asyncio.ensure_future(body.read())
    tell = partial(stowed, request, services.settings)
    try:
        return await anyio.to_thread.run_sync(
            _store, services, kind, body.chunks(), study, tell, limiter=services.uploads
        )
    finally:
        reading.cancel()


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


def _store(
    services: WebServices,
    kind: MediaType,
    chunks: Iterator[bytes],
    study: str | None,
    tell: Callable[[Iterable[Received], int], None],
) -> Response:
    with _Outcome(services) as outcome:
        try:
            _store_body(services, kind, chunks, study, outcome)
        except _Ended:
            pass
        except RequestRefused as error:  # what came before it is stored, and is told
            if outcome.is_empty:
                raise
            outcome.failures.append(_Failure(error, "", ""))
        outcome.settle()
    tell(outcome.stored, len(outcome.failures))
    if not outcome.stored and not outcome.failures:
        raise BadRequest("the body holds no instance")
    _request_completion(services, outcome)
    return dicom_json_response(_render(outcome, study), _status(outcome))


def _store_body(
    services: WebServices, kind: MediaType, chunks: Iterator[bytes], study: str | None, outcome: _Outcome
) -> None:
    limits = MultipartLimits(_max_body_bytes(services))
    if kind.essence == MULTIPART:
        reader = MultipartReader(chunks, kind.parameters.get("boundary", ""), limits)
        _store_parts(kind, reader, study, outcome)
    else:
        _store_part(Part({}, _bounded(chunks, limits.max_body_bytes)), study, outcome)


def _store_parts(kind: MediaType, reader: MultipartReader, study: str | None, outcome: _Outcome) -> None:
    if part_type(kind) == DICOM_JSON:
        for described in read_described(reader.parts()):
            _store_described(described, study, outcome)
        return
    for part in reader.parts():
        _store_part(part, study, outcome)


def _store_described(described: DescribedInstance, study: str | None, outcome: _Outcome) -> None:
    try:
        outcome.take([described.encode()], study)
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


def _store_part(part: Part, study: str | None, outcome: _Outcome) -> None:
    content = _Remembered(part.body)
    try:
        kind = parse_media_type(part.headers.get("content-type", DICOM))
        if not kind.covers(DICOM):
            raise UnsupportedMediaType(f"parts of type {kind.essence} are not taken here")
        outcome.take(content, study)
    except (BodyTooLarge, BodyTooSlow) as error:
        if outcome.is_empty:
            raise
        outcome.failures.append(_failure(error, content.head))
        raise _Ended from error
    except NodeError as error:
        outcome.failures.append(_failure(error, content.head))


def _failure(error: NodeError, head: bytes) -> _Failure:
    try:
        meta, _end = split_meta_uids(head)
        uids = (
            checked_uid(meta.sop_class, "SOP Class UID"),
            checked_uid(meta.sop_instance, "SOP Instance UID"),
        )
    except (NodeError, *VALUE_ERRORS):
        return _Failure(error, "", "")
    return _Failure(error, *uids)


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
