"""One command, `dicom-node`: serve (everything) | scp | web | worker | sweep | run | demo | doctor ..."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node import __version__

if TYPE_CHECKING:
    from dicom_node.settings import NodeSettings
    from storage.database import Database

RESEARCH_USE_ONLY = "Research use only. Not a medical device."
EXIT_FAILED = 1
EXIT_UNUSABLE = 2  # bad configuration, occupied port: nothing was started

# These keep no state of a node.
HOMELESS = frozenset({"run", "make-dicom", "samples", "models", "bench", "demo", "echo", "doctor"})

SHOWN = ("outcome", "reason", "diagnosis", "confidence", "text", "area_mm2", "area_px", "volume_ml", "files")

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what can be said in a sentence is said in one, without a stack trace."""
    from dicom_node.errors import NodeError
    from dicom_node.settings import BadConfiguration
    from inference.errors import InferenceError
    from storage.errors import SchemaMismatch, StorageError

    options = build_parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except (BadConfiguration, SchemaMismatch) as error:
        return _say(str(error), EXIT_UNUSABLE)
    except (NodeError, StorageError, InferenceError) as error:
        return _say(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="dicom-node", description=f"A DICOM AI node. {RESEARCH_USE_ONLY}")
    parser.add_argument("--version", action="version", version=f"dicom-node {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_processes(commands)
    _add_operations(commands)
    _add_offline(commands)
    return parser


def _add_processes(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    _add(commands, "serve", serve, "everything on one machine: listener, web, workers, sweep")
    _add(commands, "scp", scp, "the DICOM listener alone")
    _add(commands, "web", web, "DICOMweb, the operator's pages and the viewer alone")
    worker_parser = _add(commands, "worker", worker, "one worker alone")
    worker_parser.add_argument("queue", choices=("run", "deliver"), help="run jobs, or deliver results")
    _add(commands, "sweep", sweep, "complete studies and wake what is due, alone")


def _add_operations(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    _add(commands, "migrate", migrate, "create the database's tables, or bring them up to date")
    jobs_parser = _add(commands, "jobs", jobs, "jobs and what became of them")
    jobs_parser.add_argument("--json", action="store_true", help="one JSON document")
    fsck_parser = _add(commands, "fsck", fsck, "compare database and files")
    fsck_parser.add_argument("--json", action="store_true", help="one JSON document")
    _add(
        commands,
        "models",
        models,
        "the model packages and whether their files are the ones they were made with",
    )
    _add(commands, "doctor", doctor, "what is wrong with this installation, and what to do")
    echo_parser = _add(commands, "echo", echo, "C-ECHO to a destination or peer")
    echo_parser.add_argument("peer", help="name of a destination or peer, or AE_TITLE@HOST:PORT")


def _add_offline(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run_parser = _add(commands, "run", run, "the same pipeline on DICOM files, without a server")
    run_parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="DICOM files or folders")
    run_parser.add_argument("--out", type=Path, required=True, help="folder for SEG, SR and summary")
    run_parser.add_argument("--model", help="model package; otherwise the rules choose")
    run_parser.add_argument("--query", help="clinical question; otherwise the rules choose")
    run_parser.add_argument("--json", action="store_true", help="one JSON document")
    make_parser = _add(commands, "make-dicom", make_dicom, "wrap PNG or JPEG into DICOM, for trying the node")
    make_parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG or JPEG files")
    make_parser.add_argument("--modality", required=True, help="US, ES, DX, MR, CT or XC")
    make_parser.add_argument("--body-part", required=True, help="Body Part Examined, e.g. BREAST")
    make_parser.add_argument("--patient", default="", help="patient name to write; synthetic by default")
    make_parser.add_argument("--out", type=Path, required=True, help="folder for the DICOM files")
    samples_parser = _add(commands, "samples", samples, "write the synthetic sample studies")
    samples_parser.add_argument("--out", type=Path, required=True, help="folder for the DICOM files")
    bench_parser = _add(commands, "bench", bench, "how long it takes here")
    bench_parser.add_argument("what", choices=("pipeline", "model"))
    bench_parser.add_argument("--model", default="sim4seg-s", help="model package")
    bench_parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    demo_parser = _add(commands, "demo", demo, "a node, a PACS and three studies on this machine")
    demo_parser.add_argument("--once", action="store_true", help="end by itself; status 0 if all came back")
    demo_parser.add_argument(
        "--study", type=Path, help="DICOM folder, or PNG or JPEG files, instead of the samples"
    )
    demo_parser.add_argument("--viewer", type=Path, help="folder of OHIF's static site")


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, command: Command, words: str
) -> argparse.ArgumentParser:
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


def serve(options: argparse.Namespace) -> int:
    """Run the whole node until SIGTERM or Ctrl-C."""
    from dicom_node import supervisor
    from storage.database import upgrade

    if options.parent is not None:
        supervisor.end_with_parent(options.parent)
    settings = _settings(options)
    try:
        with supervisor.only_node_of(settings.home):
            supervisor.require_free_ports(settings)
            upgrade(settings.storage.database_url)
            _log_as(settings, "serve", options)
            print(_welcome(settings), flush=True)
            supervisor.serve(settings, options.config)
    except supervisor.CannotServe as error:
        return _say(str(error), EXIT_UNUSABLE)
    return 0


def scp(options: argparse.Namespace) -> int:
    """Run the DICOM listener until SIGTERM."""
    from dicom_node.dimse.listener import start_listener
    from dicom_node.services import open_receiver

    settings, database = _open_process(options, "scp")
    listener = start_listener(settings, open_receiver(settings, database))
    _until_told_to_stop().wait()
    listener.shutdown()
    database.close()
    return 0


def web(options: argparse.Namespace) -> int:
    """Run the web server until SIGTERM."""
    import uvicorn

    from dicom_node.web.app import build_app

    settings, database = _open_process(options, "web")
    # No access log: query strings name patients.
    uvicorn.run(
        build_app(settings, database),
        host=settings.http.host,
        port=settings.http.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=5,
    )
    database.close()
    return 0


def worker(options: argparse.Namespace) -> int:
    """Run one worker until SIGTERM; the job at hand is finished first."""
    from dicom_node import tasks

    name = f"worker-{options.queue}"
    settings, database = _open_process(options, name)
    app = tasks.build_app(settings)
    if options.queue == tasks.RUN_QUEUE:
        tasks.register_run_job(app, settings, database)
    else:
        tasks.register_deliver(app, settings, database)
    return tasks.start_worker(app, options.queue, settings)


def sweep(options: argparse.Namespace) -> int:
    """Run the sweep until SIGTERM."""
    from dicom_node.sweep import Sweep
    from dicom_node.tasks import WakeUps, build_app

    settings, database = _open_process(options, "sweep")
    Sweep(database, settings, WakeUps(build_app(settings))).run(_until_told_to_stop())
    database.close()
    return 0


def migrate(options: argparse.Namespace) -> int:
    """Create the tables, or bring them up to date."""
    from storage.database import upgrade

    upgrade(_settings(options).storage.database_url)
    print("the database is up to date")
    return 0


def jobs(options: argparse.Namespace) -> int:
    """List the jobs, newest first."""
    from dicom_node.joblist import list_jobs, table_of_jobs

    _, database = _open(options)
    rows = list_jobs(database)
    print(_json(rows) if options.json else table_of_jobs(rows))
    return 0


def fsck(options: argparse.Namespace) -> int:
    """Compare database and files; status 1 when an instance is not what it was."""
    from dicom_node.fsck import check_home, text_of

    settings, database = _open(options)
    report = check_home(settings, database)
    print(_json(report) if options.json else text_of(report))
    return 0 if report["is_sound"] else EXIT_FAILED


def models(options: argparse.Namespace) -> int:
    """List the model packages; status 1 when one is broken."""
    from inference.runtime import list_models

    settings = _settings(options)
    found = list_models(settings.inference)
    if not found:
        return _say(f"there is no model package in {settings.inference.model_repository}", EXIT_FAILED)
    for model in found:
        print(f"{model.name:<24} {model.version:<10} {model.problem or 'ok'}")
    return EXIT_FAILED if any(model.problem for model in found) else 0


def doctor(options: argparse.Namespace) -> int:
    """Say what is wrong with this installation; status 1 when something is."""
    from dicom_node.doctor import examine

    return 0 if examine(_settings(options)) else EXIT_FAILED


def echo(options: argparse.Namespace) -> int:
    """C-ECHO to a destination or peer."""
    from dicom_node.dimse.scu import echo as send_echo
    from dicom_node.peers import find_peer

    settings = _settings(options)
    peer = find_peer(options.peer, settings)
    send_echo(peer, settings.dimse.ae_title)
    print(f"{peer.ae_title} at {peer.host}:{peer.port} answers")
    return 0


def run(options: argparse.Namespace) -> int:
    """The pipeline on files, without a server; status 1 when a series has no result."""
    from dicom_node.predictors import Predictors
    from dicom_node.run_folder import RunOptions, run_paths

    settings = _settings(options)
    run_options = RunOptions(
        open_predictor=Predictors(settings).open,
        routes=settings.routes,
        model=options.model,
        query=options.query,
    )
    summaries = run_paths(options.paths, options.out, run_options)
    print(_json(summaries) if options.json else _table_of_summaries(summaries))
    return 0 if any("sop_instance_uids" in summary for summary in summaries) else EXIT_FAILED


def make_dicom(options: argparse.Namespace) -> int:
    """Wrap images into DICOM."""
    from dicom_node import make_dicom as maker

    patient = maker.Patient(name=options.patient) if options.patient else maker.Patient()
    details = maker.SeriesDetails(modality=options.modality, body_part=options.body_part, patient=patient)
    try:
        paths = maker.make_dicom(options.images, options.out, details)
    except maker.BadImage as error:
        return _say(str(error), EXIT_FAILED)
    print("\n".join(str(path) for path in paths))
    return 0


def samples(options: argparse.Namespace) -> int:
    """Write the synthetic sample studies."""
    from dicom_node.samples import write_samples

    for sample in write_samples(options.out):
        print(f"{sample.title}: {len(sample.paths)} instances in {sample.folder}")
    return 0


def bench(options: argparse.Namespace) -> int:
    """How long it takes here."""
    from dicom_node.bench import bench_model, bench_pipeline

    program = bench_pipeline if options.what == "pipeline" else bench_model
    program(_settings(options), options.model, options.rounds)
    return 0


def demo(options: argparse.Namespace) -> int:
    """A node, a PACS and three studies."""
    from dicom_node.demo import run_demo

    return run_demo(options)


def _settings(options: argparse.Namespace) -> "NodeSettings":
    from dicom_node.settings import load_settings

    return load_settings(options.home, options.config)


def _open(options: argparse.Namespace) -> "tuple[NodeSettings, Database]":
    from storage.database import Database, require_current_schema

    settings = _settings(options)
    database = Database(settings.storage.database_url)
    require_current_schema(database)
    return settings, database


def _open_process(options: argparse.Namespace, name: str) -> "tuple[NodeSettings, Database]":
    from dicom_node.supervisor import end_with_parent

    if options.parent is not None:
        end_with_parent(options.parent)
    settings, database = _open(options)
    _log_as(settings, name, options)
    return settings, database


def _log_as(settings: "NodeSettings", name: str, options: argparse.Namespace) -> None:
    from dicom_node.logs import configure_logging

    configure_logging(settings.home, name, settings.logs.level, to_stderr=options.parent is None)


def _until_told_to_stop() -> threading.Event:
    is_stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_stopping.set())
    return is_stopping


def _welcome(settings: "NodeSettings") -> str:
    dimse, http = settings.dimse, settings.http
    return (
        f"sim4seg-node {__version__}: DICOM {dimse.ae_title} at {dimse.host}:{dimse.port}, "
        f"web http://{http.host}:{http.port}/, home {settings.home}. {RESEARCH_USE_ONLY}"
    )


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, default=str)


def _table_of_summaries(summaries: "list[dict[str, object]]") -> str:
    """One block a series: what was found, where the files are, or why there is nothing."""
    lines = []
    for summary in summaries:
        lines.append(
            f"{summary.get('modality', '-')} {summary.get('series_instance_uid') or summary.get('file')}"
        )
        lines += [f"  {key:<12}{summary[key]}" for key in SHOWN if summary.get(key) is not None]
    return "\n".join([*lines, RESEARCH_USE_ONLY])


def _say(sentence: str, exit_status: int) -> int:
    print(f"dicom-node: {' '.join(sentence.split())}", file=sys.stderr)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
