"""Loops that must not end: what one pass of them did not expect is logged, and the next pass comes.

A lane, the sweep or a reporter that ended at one bad item would leave everybody else's waiting for ever.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


def steadily(step: Callable[[], T], otherwise: T, what: str, **told: object) -> T:
    """What `step` gives; `otherwise` where it failed, after a line in the log about `what` with `told`."""
    try:
        return step()
    except Exception:
        logger.exception("%s failed; it is tried again", what, extra=told)
        return otherwise
