"""Commands that run a node, or one process of it."""

import argparse
import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Final

from dicom_node import __version__
from dicom_node.commands.answering import EXIT_UNUSABLE, say
from dicom_node.commands.opening import log_as, open_node, open_process, settings_of, until_told_to_stop
from dicom_node.commands.parsing import RESEARCH_USE_ONLY, Commands, add

if TYPE_CHECKING:
    from dicom_node.settings import NodeSettings
    from storage.database import Database

PRIVATE: Final = 0o077


def register(commands: Commands) -> None:
    """Add `serve`, and each of its processes alone."""
    add(commands, "serve", privately(serve), "everything on one machine: listener, web, workers, sweep")
    add(commands, "scp", privately(scp), "the DICOM listener alone")
    add(commands, "web", privately(web), "DICOMweb, the operator's pages and the viewer alone")
    worker_parser = add(commands, "worker", privately(worker), "one worker alone")
    worker_parser.add_argument("queue", choices=("run", "deliver"), help="run jobs, or deliver results")
    add(commands, "sweep", privately(sweep), "complete studies and wake what is due, alone")


def privately(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`command`, with all it writes readable by its own user only: images, index and logs are of patients."""

    @wraps(command)
    def run(options: argparse.Namespace) -> int:
        os.umask(PRIVATE)
        return command(options)

    return run


def serve(options: argparse.Namespace) -> int:
    """Run the whole node until SIGTERM or Ctrl-C."""
    from dicom_node import supervisor
    from dicom_node.web.login.way_in import require_way_in
    from storage.database import upgrade

    if options.parent is not None:
        supervisor.end_with_parent(options.parent)
    settings = settings_of(options)
    try:
        with supervisor.only_node_of(settings.home):
            supervisor.require_free_ports(settings)
            supervisor.require_certificate(settings)
            require_way_in(settings)
            upgrade(settings.storage.database_url)
            log_as(settings, "serve", options)
            print(_welcome(settings), flush=True)
            supervisor.serve(settings, options.config)
    except supervisor.CannotServe as error:
        return say(str(error), EXIT_UNUSABLE)
    return 0


def scp(options: argparse.Namespace) -> int:
    """Run the DICOM listener until SIGTERM."""
    from dicom_node import readiness
    from dicom_node.dimse.listener import ProcessHooks, run_listener
    from dicom_node.pressure import FSYNC
    from dicom_node.services import open_pressure, open_receiver

    settings, database = open_process(options, "scp")
    if options.parent is None:  # nobody else starts this node, so this is the restart that a bad disk needs
        readiness.report(settings.home, FSYNC, None)

    def begin(number: int) -> None:
        log_as(settings, f"scp-{number + 1}", options)

    hooks = ProcessHooks(open_receiver, open_pressure(settings), begin)
    run_listener(settings, database, hooks, until_told_to_stop())
    return 0


def web(options: argparse.Namespace) -> int:
    """Run the web server until SIGTERM."""
    from dicom_node.supervisor import end_with_parent
    from dicom_node.web.processes import serve_web

    if options.parent is not None:
        end_with_parent(options.parent)

    def open_database(name: str) -> "Database":
        settings, database = open_node(options)
        log_as(settings, name, options)
        return database

    open_database("web").close()  # what is wrong with it is said here, once
    serve_web(settings_of(options), open_database)
    return 0


def worker(options: argparse.Namespace) -> int:
    """Run one worker until SIGTERM; the job at hand is finished first."""
    from dicom_node import tasks

    name = f"worker-{options.queue}"
    settings, database = open_process(options, name)
    app = tasks.build_app(settings)
    runs_jobs = options.queue == tasks.RUN_QUEUE
    (tasks.register_run_job if runs_jobs else tasks.register_deliver)(app, settings, database)
    return tasks.start_worker(app, options.queue, settings)


def sweep(options: argparse.Namespace) -> int:
    """Run the sweep until SIGTERM."""
    from dicom_node.broker_watch import BrokerWatch
    from dicom_node.sweep import Sweep
    from dicom_node.tasks import WakeUps, build_app

    settings, database = open_process(options, "sweep")
    app = build_app(settings)
    watch = BrokerWatch(app, settings.home)
    watch.start()
    Sweep(database, settings, WakeUps(app)).run(until_told_to_stop())
    watch.stop()
    database.close()
    return 0


def _welcome(settings: "NodeSettings") -> str:
    dimse, http = settings.dimse, settings.http
    return (
        f"sim4seg-node {__version__}: DICOM {dimse.ae_title} at {dimse.host}:{dimse.port}, "
        f"web http://{http.host}:{http.port}/, home {settings.home}. {RESEARCH_USE_ONLY}"
    )
