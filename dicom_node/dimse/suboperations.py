"""The C-STORE sub-operations of C-MOVE and C-GET: each instance as it is stored, or losslessly converted.

Source: PS3.4 C.4.2.3.1 (C-MOVE: a new association), C.4.3.3.1 (C-GET: the same association).
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pynetdicom import _config, build_context
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from dicom_node.dimse.calling import Peer, Proposal, associated, caller_of
from dicom_node.dimse.transcode import PLAIN, Transcoder
from dicom_node.errors import NodeError, PeerError
from dicom_node.settings import NodeSettings
from storage.errors import StorageError
from storage.files import FileStore
from storage.soundness import sound_local
from storage.tables import Instance

MAX_CONTEXTS: Final = 128  # Source: PS3.8 9.3.2.2: odd ids, 1 to 255
NO_CONTEXT: Final = 0x0122


@dataclass(frozen=True)
class Outcome:
    """What became of one sub-operation."""

    sop_instance_uid: str
    status: int | None  # of the C-STORE; None when there was none, or no answer


class Suboperations:
    """Sends instances on the peer's own association (C-GET) or on new ones (C-MOVE); a context manager."""

    def __init__(
        self,
        settings: NodeSettings,
        files: FileStore,
        *,
        association: Association | None = None,
        peer: Peer | None = None,
        originator: tuple[str, int] | None = None,
    ) -> None:
        self._settings = settings
        self._files = files
        self._association = association
        self._peer = peer
        self._originator = originator
        self._held = ExitStack()
        self._transcoder: Transcoder | None = None
        _config.STORE_SEND_CHUNKED_DATASET = True  # files go out byte for byte, undecoded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def send(self, instances: Sequence[Instance]) -> Iterator[Outcome]:
        """Send one after the other; yields as many outcomes as there are instances."""
        if self._association is not None:
            for instance in instances:
                yield self._send(self._association, instance)
            return
        for batch in batches(instances):
            yield from self._send_batch(batch)

    def _send_batch(self, batch: Sequence[Instance]) -> Iterator[Outcome]:
        if self._peer is None:
            raise ValueError("neither an association nor a peer")
        proposal = Proposal(contexts_for(batch))
        sent = 0
        try:
            with associated(self._peer, caller_of(self._settings), proposal) as association:
                for instance in batch:
                    outcome = self._send(association, instance)
                    sent += 1
                    yield outcome
        except PeerError:
            for instance in batch[sent:]:
                yield Outcome(instance.sop_instance_uid, None)

    def _send(self, association: Association, instance: Instance) -> Outcome:
        uid = instance.sop_instance_uid
        syntax = _accepted_syntax(association, instance)
        if not association.is_established:
            return Outcome(uid, None)
        if syntax is None:
            return Outcome(uid, NO_CONTEXT)
        try:
            with sound_local(self._files, instance.path) as stored:
                if syntax == instance.transfer_syntax_uid:
                    return Outcome(uid, self._store(association, stored))
                copy = self._copies().plain_copy(stored, syntax)
        except (NodeError, StorageError):
            return Outcome(uid, None)
        try:
            return Outcome(uid, self._store(association, copy))
        finally:
            copy.unlink()

    def _store(self, association: Association, path: Path) -> int | None:
        ae_title, message_id = self._originator or (None, None)
        try:
            answer = association.send_c_store(path, originator_aet=ae_title, originator_id=message_id)
        except (RuntimeError, ValueError, OSError):
            return None
        if "Status" not in answer:
            association.abort()  # or the next one would wait for its answer as long
            return None
        return int(answer.Status)

    def _copies(self) -> Transcoder:
        if self._transcoder is None:
            folder = self._held.enter_context(tempfile.TemporaryDirectory(dir=self._files.spool))
            self._transcoder = self._held.enter_context(Transcoder(Path(folder)))
        return self._transcoder


def batches(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Split `instances` so that each batch needs at most 128 presentation contexts."""
    batch: list[Instance] = []
    kinds: set[tuple[str, str]] = set()
    for instance in instances:
        kind = (instance.sop_class_uid, instance.transfer_syntax_uid)
        if kind not in kinds and len(kinds) + len({sop_class for sop_class, _ in kinds}) >= MAX_CONTEXTS - 1:
            yield batch
            batch, kinds = [], set()
        batch.append(instance)
        kinds.add(kind)
    if batch:
        yield batch


def contexts_for(instances: Sequence[Instance]) -> list[PresentationContext]:
    """Each (SOP class, stored transfer syntax), and for each SOP class the uncompressed ones."""
    kinds = sorted({(instance.sop_class_uid, instance.transfer_syntax_uid) for instance in instances})
    as_stored = [build_context(sop_class, syntax) for sop_class, syntax in kinds]
    return as_stored + [build_context(sop_class, list(PLAIN)) for sop_class in sorted(dict(kinds))]


def _accepted_syntax(association: Association, instance: Instance) -> str | None:
    """The stored transfer syntax if the peer takes it, else an uncompressed one that it takes."""
    accepted = [
        str(context.transfer_syntax[0])
        for context in association.accepted_contexts
        if context.abstract_syntax == instance.sop_class_uid and context.as_scu
    ]
    wanted = (instance.transfer_syntax_uid, *PLAIN)
    return next((syntax for syntax in wanted if syntax in accepted), None)
