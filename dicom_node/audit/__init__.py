"""The audit trail of a secure node: what happened to whose study, by whom, kept in one chain and sent on.

    events.py     what is told of each kind of event, after PS3.15 A.5.3
    message.py    how it is written in XML, after PS3.15 A.5.1
    trail.py      the door: one method for each event; never fails, never waits for anybody
    spool.py      the records on disk: one chain across all processes of the node
    verify.py     whether a record was altered, removed or moved
    forward.py    to an audit record repository by syslog (syslog.py, tls_stream.py), in order, at least once
    keeper.py     the thread that flushes, sends on, and removes what is old enough

The trail holds UIDs and, only where `audit.patient_ids` says so, Patient ID and name.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any


def add_command(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Register `dicom-node audit`; `add` is the command line's own way to add a command."""
    parser = add(commands, "audit", _run, "the audit trail: show it, or verify that nobody changed it")
    parser.add_argument("what", choices=("show", "verify"))
    parser.add_argument("--since", metavar="TIME", help="of show: 2026-01-31, or 2026-01-31T12:00Z")
    parser.add_argument("--xml", action="store_true", help="of show: the messages themselves")


def _run(options: argparse.Namespace) -> int:
    # Loaded here: no other command needs it.
    return int(importlib.import_module("dicom_node.audit.commands").audit(options))
