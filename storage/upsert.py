"""INSERT ... ON CONFLICT for both databases, which spell it alike and live in two dialects."""

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session


def insert_into(tx: Session, table: type[DeclarativeBase]) -> sqlite.Insert | postgresql.Insert:
    """Begin an INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
    if tx.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
