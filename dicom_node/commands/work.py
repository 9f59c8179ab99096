"""Commands about jobs and deliveries: what became of them, and once more."""

import argparse
import getpass
import sys

from dicom_node.commands.answering import EXIT_FAILED, EXIT_UNUSABLE, as_json, say
from dicom_node.commands.opening import open_node
from dicom_node.commands.parsing import Commands, add


def register(commands: Commands) -> None:
    """Add `jobs`, `requeue`, `deliveries` and `redeliver`."""
    jobs_parser = add(commands, "jobs", jobs, "jobs and what became of them")
    jobs_parser.add_argument("--json", action="store_true", help="one JSON document")
    jobs_parser.add_argument("--failed", action="store_true", help="dead letters only: nobody asked again")
    requeue_parser = add(commands, "requeue", requeue, "run jobs that failed once more, as new jobs")
    requeue_parser.add_argument("jobs", nargs="*", metavar="JOB", help="ids of failed jobs")
    requeue_parser.add_argument("--all-failed", action="store_true", help="every dead letter")
    deliveries_parser = add(commands, "deliveries", deliveries, "deliveries and what became of them")
    deliveries_parser.add_argument("--failed", action="store_true", help="the dead letters only")
    deliveries_parser.add_argument("--json", action="store_true", help="one JSON document")
    redeliver_parser = add(commands, "redeliver", redeliver, "send deliveries again, dead letters too")
    redeliver_parser.add_argument("deliveries", nargs="*", metavar="DELIVERY", help="ids of deliveries")
    redeliver_parser.add_argument("--failed", action="store_true", help="every dead letter")
    redeliver_parser.add_argument("--destination", help="every dead letter to this destination")


def jobs(options: argparse.Namespace) -> int:
    """List the jobs, newest first."""
    from dicom_node.joblist import plain_jobs, table_of_jobs

    _, database = open_node(options)
    rows = plain_jobs(database, is_failed_only=options.failed)
    print(as_json(rows) if options.json else table_of_jobs(rows))
    return 0


def requeue(options: argparse.Namespace) -> int:
    """Ask again for failed jobs; status 1 when one of them cannot be."""
    from dicom_node.joblist import requeue_jobs

    if bool(options.jobs) == options.all_failed:
        return say("requeue: name the jobs, or give --all-failed", EXIT_UNUSABLE)
    _, database = open_node(options)
    asked = requeue_jobs(database, options.jobs or None, by=f"dicom-node requeue, {getpass.getuser()}")
    for failed, again in asked.made.items():
        print(f"{failed} -> {again}")
    for sentence in asked.refused:
        print(f"dicom-node: {sentence}", file=sys.stderr)
    return EXIT_FAILED if asked.refused else 0


def deliveries(options: argparse.Namespace) -> int:
    """List the deliveries, newest first."""
    from dicom_node.deliverylist import plain_deliveries, table_of_deliveries

    _, database = open_node(options)
    rows = plain_deliveries(database, is_failed=options.failed)
    print(as_json(rows) if options.json else table_of_deliveries(rows))
    return 0


def redeliver(options: argparse.Namespace) -> int:
    """Send deliveries again; status 1 when one of those named cannot be, or none was named."""
    from dicom_node import deliverylist

    if not (options.deliveries or options.failed or options.destination):
        return say("name deliveries, or give --failed or --destination", EXIT_UNUSABLE)
    _, database = open_node(options)
    count, refused = deliverylist.redeliver(
        database, options.deliveries, is_failed=options.failed, destination=options.destination
    )
    print(f"{count} queued")
    for delivery_id in refused:
        say(f"{delivery_id}: there is no such delivery, or it is being sent now", EXIT_FAILED)
    return EXIT_FAILED if refused else 0
