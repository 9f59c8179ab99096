"""The database's clock, moved by a test: production code knows nothing of it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event

from storage.database import DatabaseNow

DAY_S = 86400.0


@dataclass
class Clock:
    """How far SQLite's clock is ahead of the real one, in seconds; negative = behind."""

    offset_s: float = 0.0

    def pass_days(self, days: float) -> None:
        self.offset_s += days * DAY_S


@contextmanager
def moved_clock() -> Iterator[Clock]:
    """SQLite databases that are opened inside the block ask the clock that it gives."""
    clock = Clock()

    def add_function(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.create_function("clock_offset_s", 0, lambda: clock.offset_s)

    def moved_now(element: DatabaseNow, compiler: Any, **options: Any) -> str:
        return f"({original(element, compiler, **options)} + clock_offset_s())"

    specs = vars(DatabaseNow)["_compiler_dispatcher"].specs
    original = specs["sqlite"]
    specs["sqlite"] = moved_now
    event.listen(Engine, "connect", add_function)
    try:
        yield clock
    finally:
        event.remove(Engine, "connect", add_function)
        specs["sqlite"] = original
