"""Commands that talk to a peer: does it answer, fetch a study."""

import argparse

from dicom_node.commands.answering import EXIT_FAILED
from dicom_node.commands.opening import open_node, settings_of
from dicom_node.commands.parsing import Commands, add


def register(commands: Commands) -> None:
    """Add `echo` and `pull`."""
    echo_parser = add(commands, "echo", echo, "C-ECHO to a destination or peer")
    echo_parser.add_argument("peer", help="name of a destination or peer, or AE_TITLE@HOST:PORT")
    pull_parser = add(commands, "pull", pull, "fetch a study from a peer, or its priors")
    pull_parser.add_argument("peer", help="name of a destination or peer, or AE_TITLE@HOST:PORT")
    pull_parser.add_argument("study", metavar="STUDY_UID", help="Study Instance UID")
    pull_parser.add_argument("--priors", type=int, default=0, metavar="N", help="and the N studies before it")
    pull_parser.add_argument(
        "--get", action="store_true", help="by C-GET, here and now; otherwise C-MOVE to our running listener"
    )


def echo(options: argparse.Namespace) -> int:
    """C-ECHO to a destination or peer."""
    from dicom_node.dimse.calling import caller_of
    from dicom_node.dimse.scu import echo as send_echo
    from dicom_node.peers import find_peer

    settings = settings_of(options)
    peer = find_peer(options.peer, settings)
    send_echo(peer, caller_of(settings))
    print(f"{peer.ae_title} at {peer.host}:{peer.port} answers")
    return 0


def pull(options: argparse.Namespace) -> int:
    """Fetch a study from a peer; status 1 when something of it did not come."""
    from dicom_node import pull as puller
    from dicom_node.peers import find_peer

    settings, database = open_node(options)
    wanted = puller.Wanted(options.study, options.priors, options.get)
    peer = find_peer(options.peer, settings)
    is_whole = puller.pull(peer, wanted, settings, database, lambda line: print(line, flush=True))
    database.close()
    return 0 if is_whole else EXIT_FAILED
