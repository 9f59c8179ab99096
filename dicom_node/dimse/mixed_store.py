"""C-STORE on an association that pynetdicom serves: the data set goes to the incoming file as it comes.

pynetdicom holds it in memory, or writes a file of its own in /tmp that stays when the peer breaks off. So we
give it something that looks like that file, and is the intake of the one door in.

Source: PS3.4 B.2.3 (statuses).
"""

import logging
from collections.abc import Callable
from typing import Final, cast

from pydicom import Dataset
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.events import Event

from dicom_node.announced import Announced
from dicom_node.audit.events import Node, Tally
from dicom_node.dimse.rights import require_right
from dicom_node.dimse.store_scp import SUCCESS, status
from dicom_node.errors import NodeError, Unparseable
from dicom_node.intake import Intake
from dicom_node.receive import Receiver
from dicom_node.received import Received
from dicom_node.settings import NodeSettings
from dicom_node.settings_network import Right
from storage.index import Origin

logger = logging.getLogger(__name__)

Begin = Callable[[C_STORE_RQ, str, Node], Intake]  # the request, its transfer syntax, and who sends it


class ArrivingInstance:
    """The data set of one C-STORE request; pynetdicom takes it for the file that it would make itself."""

    name: Final = ""  # of the file to remove in the end: there is none

    def __init__(self, begin: Callable[[], Intake]) -> None:
        self.file = self
        self._intake: Intake | None = None
        self._error: NodeError | None = None
        try:
            self._intake = begin()
        except NodeError as error:
            self._error = error

    def write(self, data: bytes) -> None:
        """Take the next bytes; after an error they are forgotten, since the answer follows the last."""
        if self._intake is None:
            return
        try:
            self._intake.write(data)
        except NodeError as error:
            self._error = error
            self.close()

    @property
    def is_open(self) -> bool:
        """Whether it holds anything."""
        return self._intake is not None

    def flush(self) -> None:
        """Nothing waits here."""

    def finish(self) -> Received:
        """Have the instance durable and indexed; raises InstanceRefused, NodeUnable."""
        if self._intake is None:
            raise self._error or Unparseable("the instance broke off")
        return self._intake.finish()

    def close(self) -> None:
        """Let go of it; what was not received is gone."""
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.__exit__(None, None, None)


def beginning_of(settings: NodeSettings, receiver: Receiver) -> Begin:
    """Give the function that begins to take an instance, if its sender may store."""

    def begin(request: C_STORE_RQ, transfer_syntax: str, sender: Node) -> Intake:
        require_right(settings, sender, Right.STORE)
        command = request.command_set
        uids = (str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID))
        return receiver.begin(Announced(*uids, transfer_syntax, Origin("DIMSE", sender.ae_title)))

    return begin


def answer_store(event: Event, tally: Tally) -> Dataset:
    """Have the instance of a C-STORE request received, and count it; returns the status to answer with."""
    arriving = cast("ArrivingInstance | None", getattr(event.request, "_dataset_file", None))
    try:
        if arriving is None:
            raise Unparseable("the C-STORE request has no data set")
        tally.take(arriving.finish())
    except NodeError as error:
        extra = {"status": f"0x{error.dimse_status:04X}", "reason": str(error)}
        peer = str(event.assoc.requestor.ae_title).strip()
        logger.warning("instance refused", extra={**extra, "peer": peer})
        return status(error.dimse_status, str(error))
    return status(SUCCESS)
