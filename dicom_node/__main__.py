"""One command, `dicom-node`: serve (everything) | scp | web | worker | sweep | run | demo | doctor ..."""

import argparse
import getpass
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_node import __version__
from dicom_node.audit import add_command
from dicom_node.web import login

if TYPE_CHECKING:
    from dicom_node.settings import NodeSettings
    from storage.database import Database

RESEARCH_USE_ONLY = "Research use only. Not a medical device."
EXIT_FAILED = 1
EXIT_UNUSABLE = 2  # bad configuration, occupied port: nothing was started

# These keep no state of a node.
HOMELESS = frozenset({"run", "make-dicom", "samples", "models", "bench", "demo", "echo", "doctor", "check"})

SHOWN = (
    "outcome", "reason", "diagnosis", "confidence", "conclusion", "text", "area_mm2", "area_px", "volume_ml",
    "end_diastolic_ml", "end_systolic_ml", "ejection_fraction_percent", "files",
)  # fmt: skip

Command = Callable[[argparse.Namespace], int]


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
    add_command(commands, _add)
    login.add_command(commands, _add)
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
    jobs_parser.add_argument("--failed", action="store_true", help="dead letters only: nobody asked again")
    requeue_parser = _add(commands, "requeue", requeue, "run jobs that failed once more, as new jobs")
    requeue_parser.add_argument("jobs", nargs="*", metavar="JOB", help="ids of failed jobs")
    requeue_parser.add_argument("--all-failed", action="store_true", help="every dead letter")
    deliveries_parser = _add(commands, "deliveries", deliveries, "deliveries and what became of them")
    deliveries_parser.add_argument("--failed", action="store_true", help="the dead letters only")
    deliveries_parser.add_argument("--json", action="store_true", help="one JSON document")
    redeliver_parser = _add(commands, "redeliver", redeliver, "send deliveries again, dead letters too")
    redeliver_parser.add_argument("deliveries", nargs="*", metavar="DELIVERY", help="ids of deliveries")
    redeliver_parser.add_argument("--failed", action="store_true", help="every dead letter")
    redeliver_parser.add_argument("--destination", help="every dead letter to this destination")
    fsck_parser = _add(commands, "fsck", fsck, "compare database and files")
    fsck_parser.add_argument("--json", action="store_true", help="one JSON document")
    fsck_parser.add_argument("--repair", action="store_true", help="mend without loss; stop the node first")
    rebuild_parser = _add(commands, "rebuild-index", rebuild_index, "enter every file into a lost index anew")
    rebuild_parser.add_argument("--json", action="store_true", help="one JSON document")
    rebuild_parser.add_argument(
        "--without-jobs", action="store_true", help="call every study analysed, instead of analysing it again"
    )
    _add(commands, "models", models, "the model packages, and whether their files are as they were made")
    prepare_parser = _add(commands, "prepare", prepare, "measure which engines run the models best here")
    prepare_parser.add_argument("models", nargs="*", metavar="MODEL", help="packages; otherwise the rules'")
    prepare_parser.add_argument("--rounds", type=int, default=5, help="measured images of each engine")
    prepare_parser.add_argument("--json", action="store_true", help="one JSON document")
    _add(commands, "doctor", doctor, "what is wrong with this installation, and what to do")
    echo_parser = _add(commands, "echo", echo, "C-ECHO to a destination or peer")
    echo_parser.add_argument("peer", help="name of a destination or peer, or AE_TITLE@HOST:PORT")
    pull_parser = _add(commands, "pull", pull, "fetch a study from a peer, or its priors")
    pull_parser.add_argument("peer", help="name of a destination or peer, or AE_TITLE@HOST:PORT")
    pull_parser.add_argument("study", metavar="STUDY_UID", help="Study Instance UID")
    pull_parser.add_argument("--priors", type=int, default=0, metavar="N", help="and the N studies before it")
    pull_parser.add_argument(
        "--get", action="store_true", help="by C-GET, here and now; otherwise C-MOVE to our running listener"
    )


def _add_offline(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check_parser = _add(commands, "check", check, "whether results keep the rules that they are sent by")
    check_parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="SEG and SR; images beside them are compared"
    )
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
    bench_parser.add_argument("what", choices=("pipeline", "inference", "dicomweb", "ingest", "seg", "gpu"))
    bench_parser.add_argument("--quick", action="store_true", help="less of everything, within two minutes")
    bench_parser.add_argument("--json", action="store_true", help="the figures as one JSON line, the last")
    bench_parser.add_argument(
        "--alone", action="store_true", help="ingest: only this node, with and without its guarantees"
    )
    bench_parser.add_argument("--model", help="model package: of pipeline sim4seg-s, of inference all")
    bench_parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    bench_parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of gpu")
    bench_parser.add_argument("--tiny", action="store_true", help="of gpu: sizes that take seconds on a CPU")
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
    from dicom_node.web.login.way_in import require_way_in
    from storage.database import upgrade

    if options.parent is not None:
        supervisor.end_with_parent(options.parent)
    settings = _settings(options)
    try:
        with supervisor.only_node_of(settings.home):
            supervisor.require_free_ports(settings)
            supervisor.require_certificate(settings)
            require_way_in(settings)
            upgrade(settings.storage.database_url)
            _log_as(settings, "serve", options)
            print(_welcome(settings), flush=True)
            supervisor.serve(settings, options.config)
    except supervisor.CannotServe as error:
        return _say(str(error), EXIT_UNUSABLE)
    return 0


def scp(options: argparse.Namespace) -> int:
    """Run the DICOM listener until SIGTERM."""
    from dicom_node import readiness
    from dicom_node.dimse.listener import ProcessHooks, run_listener
    from dicom_node.pressure import FSYNC
    from dicom_node.services import open_pressure, open_receiver

    settings, database = _open_process(options, "scp")
    if options.parent is None:  # nobody else starts this node, so this is the restart that a bad disk needs
        readiness.report(settings.home, FSYNC, None)

    def begin(number: int) -> None:
        _log_as(settings, f"scp-{number + 1}", options)

    hooks = ProcessHooks(open_receiver, open_pressure(settings), begin)
    run_listener(settings, database, hooks, _until_told_to_stop())
    return 0


def web(options: argparse.Namespace) -> int:
    """Run the web server until SIGTERM."""
    from dicom_node.supervisor import end_with_parent
    from dicom_node.web.processes import serve_web

    if options.parent is not None:
        end_with_parent(options.parent)

    def open_database(name: str) -> "Database":
        settings, database = _open(options)
        _log_as(settings, name, options)
        return database

    open_database("web").close()  # what is wrong with it is said here, once
    serve_web(_settings(options), open_database)
    return 0


def worker(options: argparse.Namespace) -> int:
    """Run one worker until SIGTERM; the job at hand is finished first."""
    from dicom_node import tasks

    name = f"worker-{options.queue}"
    settings, database = _open_process(options, name)
    app = tasks.build_app(settings)
    runs_jobs = options.queue == tasks.RUN_QUEUE
    (tasks.register_run_job if runs_jobs else tasks.register_deliver)(app, settings, database)
    return tasks.start_worker(app, options.queue, settings)


def sweep(options: argparse.Namespace) -> int:
    """Run the sweep until SIGTERM."""
    from dicom_node.broker_watch import BrokerWatch
    from dicom_node.sweep import Sweep
    from dicom_node.tasks import WakeUps, build_app

    settings, database = _open_process(options, "sweep")
    app = build_app(settings)
    watch = BrokerWatch(app, settings.home)
    watch.start()
    Sweep(database, settings, WakeUps(app)).run(_until_told_to_stop())
    watch.stop()
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
    rows = list_jobs(database, is_failed_only=options.failed)
    print(_json(rows) if options.json else table_of_jobs(rows))
    return 0


def requeue(options: argparse.Namespace) -> int:
    """Ask again for failed jobs; status 1 when one of them cannot be."""
    from dicom_node.joblist import requeue_jobs

    if bool(options.jobs) == options.all_failed:
        return _say("requeue: name the jobs, or give --all-failed", EXIT_UNUSABLE)
    _, database = _open(options)
    asked = requeue_jobs(database, options.jobs or None, by=f"dicom-node requeue, {getpass.getuser()}")
    for failed, again in asked.made.items():
        print(f"{failed} -> {again}")
    for sentence in asked.refused:
        print(f"dicom-node: {sentence}", file=sys.stderr)
    return EXIT_FAILED if asked.refused else 0


def deliveries(options: argparse.Namespace) -> int:
    """List the deliveries, newest first."""
    from dicom_node.deliverylist import list_deliveries, table_of_deliveries

    _, database = _open(options)
    rows = list_deliveries(database, is_failed=options.failed)
    print(_json(rows) if options.json else table_of_deliveries(rows))
    return 0


def redeliver(options: argparse.Namespace) -> int:
    """Send deliveries again; status 1 when one of those named cannot be, or none was named."""
    from dicom_node import deliverylist

    if not (options.deliveries or options.failed or options.destination):
        return _say("name deliveries, or give --failed or --destination", EXIT_UNUSABLE)
    _, database = _open(options)
    count, refused = deliverylist.redeliver(
        database, options.deliveries, is_failed=options.failed, destination=options.destination
    )
    print(f"{count} queued")
    for delivery_id in refused:
        _say(f"{delivery_id}: there is no such delivery, or it is being sent now", EXIT_FAILED)
    return EXIT_FAILED if refused else 0


def fsck(options: argparse.Namespace) -> int:
    """Compare database and files; status 1 when an instance is not what it was."""
    from dicom_node.fsck import check_home, repair_home, text_of
    from dicom_node.notes import IdentityRules
    from storage.files import open_files

    settings, database = _open(options)
    identity = IdentityRules(settings.identity.follow_rejection_notes)
    with _only_here(settings) if options.repair else nullcontext():
        look = partial(repair_home, identity=identity) if options.repair else check_home
        report = look(database, open_files(settings.storage))
    print(_json(report) if options.json else text_of(report))
    return 0 if report["is_sound"] else EXIT_FAILED


def rebuild_index(options: argparse.Namespace) -> int:
    """Enter every file into an index that was lost; makes its tables first."""
    from dicom_node import fsck as checks
    from dicom_node.notes import IdentityRules
    from storage.database import Database, upgrade
    from storage.files import open_files

    settings = _settings(options)
    with _only_here(settings):
        upgrade(settings.storage.database_url)
        database = Database(settings.storage.database_url)
        identity = IdentityRules(settings.identity.follow_rejection_notes)
        files = open_files(settings.storage)
        report = checks.rebuild_index(database, files, identity, with_jobs=not options.without_jobs)
        database.close()
    print(_json(report) if options.json else "\n".join(f"{value} {key}" for key, value in report.items()))
    return 0


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


def prepare(options: argparse.Namespace) -> int:
    """Prepare the engines that inference.engines = "prepared" will run."""
    from dicom_node.prepare import evidence_of, prepare_models, text_of

    made = prepare_models(_settings(options), options.models, max(1, options.rounds))
    print(_json(evidence_of(made)) if options.json else text_of(made))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Say what is wrong with this installation; status 1 when something is."""
    from dicom_node.doctor import examine

    return 0 if examine(_settings(options)) else EXIT_FAILED


def echo(options: argparse.Namespace) -> int:
    """C-ECHO to a destination or peer."""
    from dicom_node.dimse.calling import caller_of
    from dicom_node.dimse.scu import echo as send_echo
    from dicom_node.peers import find_peer

    settings = _settings(options)
    peer = find_peer(options.peer, settings)
    send_echo(peer, caller_of(settings))
    print(f"{peer.ae_title} at {peer.host}:{peer.port} answers")
    return 0


def pull(options: argparse.Namespace) -> int:
    """Fetch a study from a peer; status 1 when something of it did not come."""
    from dicom_node import pull as puller
    from dicom_node.peers import find_peer

    settings, database = _open(options)
    wanted = puller.Wanted(options.study, options.priors, options.get)
    peer = find_peer(options.peer, settings)
    is_whole = puller.pull(peer, wanted, settings, database, lambda line: print(line, flush=True))
    database.close()
    return 0 if is_whole else EXIT_FAILED


def run(options: argparse.Namespace) -> int:
    """The pipeline on files, without a server; status 1 when a series has no result."""
    from dicom_node.frames import display_frames
    from dicom_node.predictors import Predictors
    from dicom_node.run_folder import RunOptions, run_paths
    from dicom_node.services import open_decoders

    settings = _settings(options)
    with open_decoders(settings) as decoders:
        run_options = RunOptions(
            open_predictor=Predictors(settings).open,
            routes=settings.routes,
            model=options.model,
            query=options.query,
            decode=partial(decoders.each, display_frames),
        )
        summaries = run_paths(options.paths, options.out, run_options)
    print(_json(summaries) if options.json else _table_of_summaries(summaries))
    return 0 if any("sop_instance_uids" in summary for summary in summaries) else EXIT_FAILED


def check(options: argparse.Namespace) -> int:
    """What of the files breaks a rule; status 1 when something does."""
    from dicom_node.air.check_files import check_files

    checked = check_files(options.files)
    for entry in checked:
        print("\n".join(f"{entry.name}: {word}" for word in entry.broken or ("keeps every rule",)))
    if not checked:
        return _say("there is no SEG and no SR among the files", EXIT_FAILED)
    return EXIT_FAILED if any(entry.broken for entry in checked) else 0


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
    if options.what == "gpu":
        from dicom_node.bench.gpu import bench_gpu

        flags = [f"--{name}" for name in ("tiny", "json") if getattr(options, name)]
        return bench_gpu(["--device", options.device, "--rounds", str(options.rounds), *flags])
    if options.what not in {"pipeline", "inference"}:
        return _bench_figures(options)
    from dicom_node.bench.pipeline import bench_inference, bench_pipeline

    program = bench_pipeline if options.what == "pipeline" else bench_inference
    program(_settings(options), options.model, options.rounds)
    return 0


def _bench_figures(options: argparse.Namespace) -> int:
    from dicom_node.bench.dicomweb import bench_dicomweb
    from dicom_node.bench.ingest import bench_ingest
    from dicom_node.bench.orthanc import PeerMissing
    from dicom_node.bench.seg import bench_segmentation

    programs: dict[str, Callable[..., tuple[str, dict[str, Any]]]] = {
        "dicomweb": bench_dicomweb,
        "ingest": partial(bench_ingest, is_alone=options.alone),
        "seg": partial(bench_segmentation, rounds=options.rounds),
    }
    try:
        table, figures = programs[options.what](is_quick=options.quick)
    except PeerMissing as error:
        return _say(str(error), EXIT_UNUSABLE)
    print(table)
    if options.json:
        print(json.dumps(figures))
    return 0 if figures.get("is_equal", True) else EXIT_FAILED


def demo(options: argparse.Namespace) -> int:
    """A node, a PACS and three studies."""
    from dicom_node.demo import run_demo

    return run_demo(options)


def _settings(options: argparse.Namespace) -> "NodeSettings":
    from dicom_node.settings import load_settings

    return load_settings(options.home, options.config)


def _open(options: argparse.Namespace) -> "tuple[NodeSettings, Database]":
    from dicom_node.recovery import replay_journals
    from storage.database import Database, require_current_schema

    settings = _settings(options)
    database = Database(settings.storage.database_url, settings.storage.database_answer_s)
    require_current_schema(database)
    replay_journals(settings, database)
    return settings, database


@contextmanager
def _only_here(settings: "NodeSettings") -> Iterator[None]:
    """Hold the home as the node does, for what must not run beside it."""
    from dicom_node.supervisor import only_node_of

    with only_node_of(settings.home):
        yield


def _open_process(options: argparse.Namespace, name: str) -> "tuple[NodeSettings, Database]":
    from dicom_node.supervisor import end_with_parent

    if options.parent is not None:
        end_with_parent(options.parent)
    settings, database = _open(options)
    _log_as(settings, name, options)
    return settings, database


def _log_as(settings: "NodeSettings", name: str, options: argparse.Namespace) -> None:
    from dicom_node.audit.activity import runs_alone
    from dicom_node.logs import configure_logging

    configure_logging(settings.home, name, settings.logs.level, to_stderr=options.parent is None)
    runs_alone(settings, name, options.parent)


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
