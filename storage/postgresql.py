"""PostgreSQL connections that do not wait for ever: a server that hangs is a server that is down."""

from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.errors import _WaitTimeout

CONNECT_WITHIN_S = 5


class Impatient(psycopg.Connection[Any]):
    """A connection that breaks when the server says nothing for `answer_within_s`.

    A stopped process keeps a connection open without a word. Neither statement_timeout, which the server
    itself would have to enforce, nor TCP keep-alives, which its kernel answers, end that wait.
    """

    answer_within_s: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait as psycopg does, within the limit; then close, since what comes later answers nothing."""
        try:
            return super().wait(gen, interval, self.answer_within_s if timeout is None else timeout)
        except _WaitTimeout as error:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError("the server did not answer in time") from error


def connect(answer_within_s: float | None, *arguments: Any, **options: Any) -> Impatient:
    """Connect, within five seconds."""
    connection = Impatient.connect(*arguments, **{"connect_timeout": CONNECT_WITHIN_S, **options})
    connection.answer_within_s = answer_within_s
    return connection
