"""What became of a log-in: one line in the log, one record in the audit trail."""

import logging
from enum import StrEnum
from typing import Final

from dicom_node.audit.events import Node
from dicom_node.audit.trail import trail_of
from dicom_node.settings import NodeSettings

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """What is told of somebody who comes or goes."""

    LOGGED_IN = "logged in"
    LOGGED_OUT = "logged out"
    REFUSED = "log-in refused"
    LOCKED = "log-in locked after too many failures"


UNKNOWN: Final = "unknown"  # a name that is nobody's is not written down: people type passwords there


class LoginLog:
    """Where one node tells what became of log-ins."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings

    def on_login(self, outcome: Outcome, who: str, address: str) -> None:
        """Tell it: `who` is a known name or UNKNOWN."""
        is_success = outcome in {Outcome.LOGGED_IN, Outcome.LOGGED_OUT}
        level = logging.INFO if is_success else logging.WARNING
        logger.log(level, "%s", outcome, extra={"user": who, "peer": address})
        trail = trail_of(self._settings)
        if outcome is Outcome.LOCKED:
            trail.refused(Node(address=address), f"{outcome}: {who}")
        elif outcome is Outcome.LOGGED_OUT:
            trail.logged_out(who, address)
        else:
            trail.logged_in(who, address, is_success=is_success)
