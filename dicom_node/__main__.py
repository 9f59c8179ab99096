"""One command, `dicom-node`: serve (everything) | scp | web | worker | sweep | run | demo | doctor ..."""

import argparse
import signal
import sys
from collections.abc import Sequence

from dicom_node import __version__
from dicom_node.audit import add_command
from dicom_node.commands import bench, index, machine, offline, peers, processes, work
from dicom_node.commands.answering import EXIT_FAILED, EXIT_UNUSABLE, say
from dicom_node.commands.parsing import RESEARCH_USE_ONLY, Command, add
from dicom_node.web import login


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what can be said in a sentence is said in one, without a stack trace."""
    from dicom_node.audit.activity import tell_command
    from dicom_node.errors import NodeError
    from dicom_node.settings import BadConfiguration
    from dicom_node.supervisor import CannotServe
    from inference.errors import InferenceError
    from storage.errors import SchemaMismatch, StorageError

    options = build_parser().parse_args(arguments)
    command: Command = options.command
    try:
        return tell_command(options, command(options))
    except (BadConfiguration, CannotServe, SchemaMismatch) as error:
        return say(str(error), EXIT_UNUSABLE)
    except (NodeError, StorageError, InferenceError) as error:
        return say(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="dicom-node", description=f"A DICOM AI node. {RESEARCH_USE_ONLY}")
    parser.add_argument("--version", action="version", version=f"dicom-node {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for part in (processes, index, work, machine, peers):
        part.register(commands)
    add_command(commands, add)
    login.add_command(commands, add)
    offline.register(commands)
    bench.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
