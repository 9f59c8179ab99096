"""What all commands have in common on the command line: their home, their configuration, their words."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

RESEARCH_USE_ONLY: Final = "Research use only. Not a medical device."

# These keep no state of a node.
HOMELESS: Final = frozenset(
    {"run", "make-dicom", "samples", "models", "bench", "demo", "echo", "doctor", "check"}
)

Command: TypeAlias = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - no other name


def add(commands: Commands, name: str, command: Command, words: str) -> argparse.ArgumentParser:
    """Add one command; `words` say in a line what it is for."""
    description = f"{words[0].upper()}{words[1:]}. {RESEARCH_USE_ONLY}"
    parser = commands.add_parser(name, help=words, description=description)
    home = os.environ.get("DICOM_NODE_HOME")
    config = os.environ.get("DICOM_NODE_CONFIG")
    needs_home = home is None and name not in HOMELESS
    default = ".demo" if name == "demo" else ".node"
    parser.add_argument(
        "--home",
        type=Path,
        required=needs_home,
        default=Path(home or default),
        help="folder of the node's state",
    )
    parser.add_argument("--config", type=Path, default=Path(config) if config else None, help="TOML file")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(command=command, process=name)
    return parser
