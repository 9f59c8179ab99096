"""Who may use the web server: tokens, users with passwords and sessions, tokens of an OpenID provider.

rights.py       which role each route needs; every route has a row, or nothing starts
gate.py         the middleware that finds out who sends a request
doorkeeper.py   by the header Authorization, or by the cookie of a session
who.py          a login, as handlers see it
answers.py      401, 429 and 503, each with a sentence
files.py        files that only their owner can read
users.py        HOME/login/users.json: users with password hashes, tokens with theirs
passwords.py    scrypt
sessions.py     signed cookies, ended by time, by log-out, and with their user
provider.py     the OpenID provider's keys: fetched, kept, fetched again
jwt_login.py    what a token of the provider must be
failures.py     how often somebody failed, counted by all processes together
page.py         /login and /logout
outcomes.py     the log, and the audit trail
way_in.py       a log-in by which nobody could come in is refused at the start
commands.py     `dicom-node users`
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any


def add_command(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Register `dicom-node users`; `add` is the command line's own way to add a command."""
    parser = add(commands, "users", _run, "who may use the web server: users, and tokens of machines")
    parser.add_argument("action", choices=("add", "list", "remove", "token"))
    parser.add_argument("name", nargs="?", default="", help="of the user or token")
    parser.add_argument(
        "--role",
        action="append",
        default=[],
        dest="roles",
        choices=("viewer", "sender", "operator", "monitor"),
        help="what they may; several times for several",
    )
    parser.add_argument("--days", type=float, help="of token: it ends after so many; otherwise never")


def _run(options: argparse.Namespace) -> int:
    # Loaded here: no other command needs it.
    return int(importlib.import_module("dicom_node.web.login.commands").users(options))
