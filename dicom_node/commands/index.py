"""Commands about the database and its files: tables, checks, an index made anew."""

import argparse
from contextlib import nullcontext
from functools import partial

from dicom_node.commands.answering import EXIT_FAILED, as_json
from dicom_node.commands.opening import only_here, open_node, settings_of
from dicom_node.commands.parsing import Commands, add


def register(commands: Commands) -> None:
    """Add `migrate`, `fsck` and `rebuild-index`."""
    add(commands, "migrate", migrate, "create the database's tables, or bring them up to date")
    fsck_parser = add(commands, "fsck", fsck, "compare database and files")
    fsck_parser.add_argument("--json", action="store_true", help="one JSON document")
    fsck_parser.add_argument("--repair", action="store_true", help="mend without loss; stop the node first")
    rebuild_parser = add(commands, "rebuild-index", rebuild_index, "enter every file into a lost index anew")
    rebuild_parser.add_argument("--json", action="store_true", help="one JSON document")
    rebuild_parser.add_argument(
        "--without-jobs", action="store_true", help="call every study analysed, instead of analysing it again"
    )


def migrate(options: argparse.Namespace) -> int:
    """Create the tables, or bring them up to date."""
    from storage.database import upgrade

    upgrade(settings_of(options).storage.database_url)
    print("the database is up to date")
    return 0


def fsck(options: argparse.Namespace) -> int:
    """Compare database and files; status 1 when an instance is not what it was."""
    from dicom_node.fsck import check_home, repair_home, text_of
    from dicom_node.notes import IdentityRules
    from storage.files import open_files

    settings, database = open_node(options)
    identity = IdentityRules(settings.identity.follow_rejection_notes)
    with only_here(settings) if options.repair else nullcontext():
        look = partial(repair_home, identity=identity) if options.repair else check_home
        report = look(database, open_files(settings.storage))
    print(as_json(report) if options.json else text_of(report))
    return 0 if report["is_sound"] else EXIT_FAILED


def rebuild_index(options: argparse.Namespace) -> int:
    """Enter every file into an index that was lost; makes its tables first."""
    from dicom_node import fsck as checks
    from dicom_node.notes import IdentityRules
    from storage.database import Database, upgrade
    from storage.files import open_files

    settings = settings_of(options)
    with only_here(settings):
        upgrade(settings.storage.database_url)
        database = Database(settings.storage.database_url)
        identity = IdentityRules(settings.identity.follow_rejection_notes)
        files = open_files(settings.storage)
        report = checks.rebuild_index(database, files, identity, with_jobs=not options.without_jobs)
        database.close()
    print(as_json(report) if options.json else "\n".join(f"{value} {key}" for key, value in report.items()))
    return 0
