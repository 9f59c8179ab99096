"""Alembic environment; reads storage.tables, nothing else of ours."""

from alembic import context

from storage.tables import Table


def run_migrations() -> None:
    """Migrate on the caller's connection, inside the caller's transaction: all steps or none."""
    connection = context.config.attributes.get("connection")
    if connection is None:
        raise RuntimeError("migrations need a connection: use `dicom-node migrate`")
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run_migrations()
