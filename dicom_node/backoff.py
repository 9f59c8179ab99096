"""How long to wait before the next attempt."""

import random


def backoff_s(attempt: int, first_s: float, longest_s: float) -> float:
    """Seconds before the next attempt: doubled with each failure, at most `longest_s`, with jitter.

    `attempt` is the one that has just failed, from 1. The jitter is 0.8 to 1.2, so that a hundred results
    that failed together do not come back together.
    """
    wait_s = min(first_s * 2.0 ** min(attempt - 1, 32), longest_s)
    return wait_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, hides nothing
