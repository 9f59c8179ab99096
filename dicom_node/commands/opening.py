"""What commands open: the settings, the index of a home, a process of the node."""

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicom_node.settings import NodeSettings
    from storage.database import Database


def settings_of(options: argparse.Namespace) -> "NodeSettings":
    """The settings of the home that the options name."""
    from dicom_node.settings import load_settings

    return load_settings(options.home, options.config)


def open_node(options: argparse.Namespace) -> "tuple[NodeSettings, Database]":
    """The settings, and the index once journals of dead processes are in it."""
    from dicom_node.recovery import replay_journals
    from storage.database import Database, require_current_schema

    settings = settings_of(options)
    database = Database(settings.storage.database_url, settings.storage.database_answer_s)
    require_current_schema(database)
    replay_journals(settings, database)
    return settings, database


@contextmanager
def only_here(settings: "NodeSettings") -> Iterator[None]:
    """Hold the home as the node does, for what must not run beside it."""
    from dicom_node.supervisor import only_node_of

    with only_node_of(settings.home):
        yield


def open_process(options: argparse.Namespace, name: str) -> "tuple[NodeSettings, Database]":
    """As `open_node`, for a process of the node: it ends with its supervisor, and has a log of its name."""
    from dicom_node.supervisor import end_with_parent

    if options.parent is not None:
        end_with_parent(options.parent)
    settings, database = open_node(options)
    log_as(settings, name, options)
    return settings, database


def log_as(settings: "NodeSettings", name: str, options: argparse.Namespace) -> None:
    """Write the log of a process of the node."""
    from dicom_node.audit.activity import runs_alone
    from dicom_node.logs import configure_logging

    configure_logging(settings.home, name, settings.logs.level, to_stderr=options.parent is None)
    runs_alone(settings, name, options.parent)


def until_told_to_stop() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set."""
    is_stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_stopping.set())
    return is_stopping
