"""`dicom-node users`: add, list and remove users, and make tokens.

A password is never among the arguments, since everybody on the machine sees those.
"""

import argparse
import getpass
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime

from dicom_node.audit.activity import person
from dicom_node.audit.trail import host_name, spool_of, trail_of
from dicom_node.errors import BadRequest
from dicom_node.settings import NodeSettings, load_settings
from dicom_node.settings_web import Role
from dicom_node.web.login.users import Token, User, Users, UsersFile
from storage.errors import StorageError


def users(options: argparse.Namespace) -> int:
    """Do what the options say. Raises BadRequest, LoginUnusable."""
    settings = load_settings(options.home, options.config)
    known = UsersFile(settings.home)
    if options.action == "list":
        print(table_of(known.now()))
        return 0
    if not options.name:
        raise BadRequest(f"users {options.action}: give a name")
    print(_change(known, options))
    _tell(settings, options)
    return 0


def _change(known: UsersFile, options: argparse.Namespace) -> str:
    if options.action == "remove":
        known.remove(options.name)
        return f"{options.name} is removed; sessions and tokens of this name are over"
    roles = [Role(role) for role in options.roles]
    if not roles:
        raise BadRequest(f"give at least one --role: {', '.join(Role)}")
    if options.days is not None and options.days <= 0:
        raise BadRequest("--days: more than 0")
    if options.action == "token":
        return known.add_token(options.name, roles, options.days)
    known.add_user(options.name, ask_password(), roles)
    return f"{options.name} may log in"


def _tell(settings: NodeSettings, options: argparse.Namespace) -> None:
    """Who may come in was changed: a record of the audit trail, on the disk."""
    roles = f", roles {', '.join(options.roles)}" if options.roles else ""
    what = f"dicom-node users {options.action} {options.name}{roles}"
    trail_of(settings).operated(person(), host_name(), what)
    with suppress(OSError, StorageError):  # told by the trail, if it could not be written
        spool_of(settings).flush()


def ask_password() -> str:
    """A new password: typed twice at a terminal, otherwise the first line of stdin. Raises BadRequest."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != password:
        raise BadRequest("the two are not the same")
    return password


def table_of(known: Users) -> str:
    """Everybody, a line each."""
    lines = [*map(_line, known.users), *map(_line, known.tokens)]
    return "\n".join(lines) or "there are no users and no tokens"


def _line(record: User | Token) -> str:
    kind = "user" if isinstance(record, User) else "token"
    roles = ",".join(sorted(record.roles))
    end = _end(record.expires_at) if isinstance(record, Token) and record.expires_at is not None else ""
    return f"{record.name:<24} {kind:<6} {roles:<32} since {_day(record.created_at)}{end}"


def _end(expires_at: float) -> str:
    return f", until {_day(expires_at)}{' (over)' if expires_at <= time.time() else ''}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
