"""Statements that run for every instance: compiled once, executed on the driver's own cursor.

SQLAlchemy spends ten times as long on executing a statement as SQLite spends on carrying it out; on the way
in of an instance that is most of the time. The statements are SQLAlchemy's, in both dialects; only the
execution goes past it. Errors come back as SQLAlchemy's own, so `Database.transaction` translates them.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any, Final, Protocol

from sqlalchemy import Executable, make_url
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import ClauseElement

from storage.database import DRIVER, Transaction

_DIALECTS: Final[Mapping[str, Dialect]] = {
    "sqlite": sqlite.dialect(paramstyle="named"),
    "postgresql": make_url("postgresql+psycopg://").get_dialect()(),
}


class Cursor(Protocol):
    """What of the driver's cursor is used here."""

    @property
    def rowcount(self) -> int:
        """How many rows an INSERT or UPDATE touched."""
        ...

    def fetchone(self) -> Any:
        """Give the next row as a tuple, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """Give the rest of the rows as tuples."""
        ...


class Prepared:
    """One statement, made by `build` for each dialect's name; `run` may be called from any thread."""

    def __init__(self, **statements: Executable) -> None:
        self._compiled = {name: _compile(name, statement) for name, statement in statements.items()}

    def run(self, tx: Transaction, values: Mapping[str, Any]) -> Cursor:
        """Execute it in `tx` with `values` for its bound parameters."""
        driver: Any = tx.info.get(DRIVER)
        if driver is not None:
            return self._run(driver, "sqlite", values, sqlite3.Error)
        dialect = tx.get_bind().dialect
        driver = tx.connection().connection.driver_connection
        return self._run(driver, dialect.name, values, dialect.loaded_dbapi.Error)

    def _run(self, driver: Any, dialect: str, values: Mapping[str, Any], errors: Any) -> Cursor:
        sql, constants = self._compiled[dialect]
        try:
            cursor: Cursor = driver.execute(sql, {**constants, **values} if constants else values)
        except errors as error:
            raise DBAPIError.instance(
                sql, None, error, errors, hide_parameters=True, dialect=_DIALECTS[dialect]
            ) from None
        return cursor


def _compile(dialect: str, statement: Executable) -> tuple[str, dict[str, Any]]:
    assert isinstance(statement, ClauseElement)  # noqa: S101 - every statement is one; for the type checker
    compiled = statement.compile(dialect=_DIALECTS[dialect])
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    return str(compiled), constants
