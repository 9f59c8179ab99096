"""`make demo`: a node, a small PACS and three studies on this machine, from C-STORE to the viewer's link."""

import argparse
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dicom_node.demo_pacs import AE_TITLE as PACS_AE_TITLE
from dicom_node.demo_pacs import Arrival, DemoPacs, open_pacs
from dicom_node.demo_studies import DemoStudy, group, studies_at
from dicom_node.dimse.scu import send_instances
from dicom_node.joblist import plain_jobs
from dicom_node.make_dicom import BadImage
from dicom_node.samples import SampleStudy, write_samples
from dicom_node.settings import NodeSettings, load_settings
from dicom_node.settings_network import PeerSettings
from storage.database import Database
from storage.index import find_study, series_of_study

NOTICE = "Research use only. Not a medical device."
SENDER_AE_TITLE = "DEMO_SENDER"
DIMSE_PORT, HTTP_PORT, PACS_PORT = 11112, 8080, 11113
QUIET_PERIOD_S = 2.0
START_LIMIT_S = 120.0
RESULT_LIMIT_S = 900.0
POLL_S = 0.1
REPOSITORY = Path(__file__).resolve().parent.parent
OHIF = REPOSITORY / ".cache" / "ohif"
OVER = frozenset({"COMPLETED", "CANCELED"})


class DemoFailed(Exception):
    """The demo cannot go on; the message is one sentence."""


@dataclass
class Progress:
    """One sent study and what has become of it."""

    study: DemoStudy
    sent_at: float = 0.0  # monotonic seconds, when the last image was acknowledged
    state: str = ""  # as last told
    outcome: str | None = None
    jobs: list[dict[str, Any]] = field(default_factory=list)
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    seg_series: str | None = None

    @property
    def expected(self) -> list[str]:
        """UIDs of every object that the finished jobs made."""
        uids = [job["summary"]["sop_instance_uids"] for job in self.jobs if job["summary"]]
        return [uid for by_kind in uids for uid in by_kind.values() if uid]

    @property
    def is_over(self) -> bool:
        """Nothing more will happen: no rule matched, or every job ended and every object arrived."""
        if self.outcome is None or any(job["state"] not in OVER for job in self.jobs):
            return False
        return all(uid in self.arrivals for uid in self.expected)

    @property
    def is_complete(self) -> bool:
        """Every job gave a result, and every object of it has arrived."""
        return self.is_over and bool(self.jobs) and all(job["state"] == "COMPLETED" for job in self.jobs)


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo; status 0 when every study came back complete."""
    for number in (signal.SIGINT, signal.SIGTERM):  # both end it in the same, tidy way
        signal.signal(number, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress shows at once in a pipe too
    print(NOTICE if options.study else f"{NOTICE} Synthetic images.")
    folder = options.home.absolute()
    try:
        settings, pacs_port = _prepare(folder, options)
        studies = _studies(folder, options)
        with open_pacs(folder / "pacs", pacs_port) as pacs, _node(settings, folder):
            progress = _send(studies, settings)
            _wait(progress, pacs, settings)
            for each in progress:
                _tell_result(each, settings)
            is_complete = all(each.is_complete for each in progress)
            _tell_end(settings, is_complete=is_complete)
            if not options.once:
                threading.Event().wait()
    except (DemoFailed, BadImage) as error:
        print(f"dicom-node demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nThe demo ends.")
        return 0
    return 0 if is_complete else 1


def _prepare(folder: Path, options: argparse.Namespace) -> tuple[NodeSettings, int]:
    """A fresh folder with a configuration for free ports."""
    for name in ("node", "pacs", "studies"):
        if (folder / name).exists() and _is_running(folder / "node"):
            raise DemoFailed(f"a demo already runs in {folder}; end it first.")
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    dimse, http, pacs = (
        _port(what, wanted)
        for what, wanted in (("DICOM", DIMSE_PORT), ("web", HTTP_PORT), ("PACS", PACS_PORT))
    )
    viewer = _viewer(options)
    config = folder / "node.toml"
    config.write_text(_configuration(dimse, http, pacs, viewer), encoding="utf-8")
    return load_settings(folder / "node", config), pacs


def _is_running(home: Path) -> bool:
    pid_file = home / "run" / "serve.pid"
    if not pid_file.exists():
        return False
    pid = int(pid_file.read_text() or 0)
    return pid > 0 and Path(f"/proc/{pid}").exists()


def _port(what: str, wanted: int) -> int:
    """`wanted` if nobody listens there, else a free one, which is said."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
            print(f"Port {wanted} is taken, so {what} listens on {probe.getsockname()[1]}.")
        return int(probe.getsockname()[1])


def _viewer(options: argparse.Namespace) -> Path | None:
    given = options.viewer or os.environ.get("DICOM_NODE_VIEWER__OHIF_ROOT")
    root = Path(given).absolute() if given else OHIF
    if (root / "index.html").is_file():
        return root
    print(
        f"There is no OHIF at {root}: the demo goes on without the viewer (scripts/get_ohif.sh fetches it)."
    )
    return None


def _configuration(dimse: int, http: int, pacs: int, viewer: Path | None) -> str:
    shown = f"[viewer]\nohif_root = {json.dumps(str(viewer))}\n" if viewer else ""
    return (
        textwrap.dedent(f"""\
        # Written by the demo.
        [dimse]
        port = {dimse}
        [http]
        port = {http}
        [completion]
        quiet_period_s = {QUIET_PERIOD_S}
        [delivery]
        first_retry_s = 2.0
        [[destinations]]
        name = "demo-pacs"
        ae_title = "{PACS_AE_TITLE}"
        host = "127.0.0.1"
        port = {pacs}
        """)
        + shown
    )


def _studies(folder: Path, options: argparse.Namespace) -> list[DemoStudy]:
    made = folder / "studies"
    if options.study is None:
        return [_sample(sample) for sample in write_samples(made)]
    if not options.study.exists():
        raise DemoFailed(f"{options.study}: there is no such file or folder.")
    modality = os.environ.get("MODALITY", "US")
    body_part = os.environ.get("BODY_PART", "BREAST")
    studies = studies_at(options.study, made, modality, body_part)
    if any(path.is_relative_to(made) for study in studies for path in study.paths):
        print(f"The images are sent as {modality} {body_part}; MODALITY=... BODY_PART=... say otherwise.")
    return studies


def _sample(sample: SampleStudy) -> DemoStudy:
    (study,) = group(list(sample.paths))
    return replace(study, title=sample.title)


@contextmanager
def _node(settings: NodeSettings, folder: Path) -> Iterator[None]:
    """The node as `dicom-node serve` in a process of its own, ready; ended with the block."""
    command = [sys.executable, "-m", "dicom_node", "serve", "--home", str(settings.home)]
    command += ["--config", str(folder / "node.toml"), "--parent", str(os.getpid())]
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)
    try:
        _until_ready(process, settings)
        yield
    finally:
        process.terminate()
        process.wait()


def _until_ready(process: subprocess.Popen[bytes], settings: NodeSettings) -> None:
    address = f"http://{settings.http.host}:{settings.http.port}/health/ready"
    end = time.monotonic() + START_LIMIT_S
    why = "no answer"
    while time.monotonic() < end:
        if process.poll() is not None:
            raise DemoFailed("the node did not start; the sentence above says why.")
        try:
            with (
                urllib.request.urlopen(address, timeout=5),
                socket.create_connection((settings.dimse.host, settings.dimse.port), timeout=5),
            ):
                if _is_our_node(process, settings):
                    return
        except urllib.error.HTTPError as error:
            why = error.read(2000).decode("utf-8", "replace")
        except OSError:
            pass
        time.sleep(POLL_S)
    raise DemoFailed(
        f"the node was not ready after {START_LIMIT_S:.0f} s ({why}); see {settings.home / 'logs'}."
    )


def _is_our_node(process: subprocess.Popen[bytes], settings: NodeSettings) -> bool:
    """Say whether our child is what answers: a stranger may have taken its port, and gets no images."""
    folder = settings.home / "run"
    try:
        supervisor_pid = (folder / "serve.pid").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return False
    started = all((folder / f"{name}.pid").exists() for name in ("scp", "web"))
    return supervisor_pid == str(process.pid) and started


def _send(studies: Sequence[DemoStudy], settings: NodeSettings) -> list[Progress]:
    node = PeerSettings(
        name="node", ae_title=settings.dimse.ae_title, host=settings.dimse.host, port=settings.dimse.port
    )
    progress = []
    for study in studies:
        statuses = send_instances(study.paths, node, SENDER_AE_TITLE)
        refused = [status for status in statuses if not status.is_delivered]
        if refused:
            raise DemoFailed(
                f"{study.title}: the node refused {len(refused)} instances ({refused[0].detail})."
            )
        progress.append(Progress(study, sent_at=time.monotonic()))
        print(f"{study.title:<40} sent {len(statuses)} instance{'s' * (len(statuses) > 1)} by C-STORE")
    return progress


def _wait(progress: Sequence[Progress], pacs: DemoPacs, settings: NodeSettings) -> None:
    """Look at the node's jobs and at the PACS until every study is over; say what changes."""
    database = Database(settings.storage.database_url)
    end = time.monotonic() + RESULT_LIMIT_S
    try:
        while not all(each.is_over for each in progress):
            if time.monotonic() > end:
                print(
                    f"Not everything came back within {RESULT_LIMIT_S:.0f} s; see {settings.home / 'logs'}."
                )
                return
            for each in progress:
                _look(each, pacs, database)
            time.sleep(POLL_S)
    finally:
        database.close()


def _look(progress: Progress, pacs: DemoPacs, database: Database) -> None:
    uid = progress.study.study_instance_uid
    with database.reading() as tx:
        study = find_study(tx, uid)
        progress.outcome = study.outcome if study is not None else None
        progress.seg_series = next(
            (series.series_instance_uid for series in series_of_study(tx, uid) if series.modality == "SEG"),
            None,
        )
    progress.jobs = [job for job in plain_jobs(database) if job["study_instance_uid"] == uid]
    progress.arrivals = {
        sop_uid: arrival for sop_uid in progress.expected if (arrival := pacs.arrival(sop_uid)) is not None
    }
    state = _state(progress)
    if state != progress.state:
        progress.state = state
        print(f"{progress.study.title:<40} {state}")


def _state(progress: Progress) -> str:
    if progress.outcome is None:
        return f"received; complete when quiet for {QUIET_PERIOD_S:g} s"
    if not progress.jobs:
        return progress.outcome
    states = ", ".join(sorted(f"{job['rule']}: {job['state']}" for job in progress.jobs))
    arrived = sorted(arrival.kind for arrival in progress.arrivals.values())
    return f"{states}{'; at the PACS: ' + ' and '.join(arrived) if arrived else ''}"


def _tell_result(progress: Progress, settings: NodeSettings) -> None:
    print(f"\n{progress.study.title}")
    if not progress.jobs:
        print(f"  outcome     {progress.outcome or 'the study was not completed'}")
    for job in progress.jobs:
        _tell_job(job, progress)
    print(f"  viewer      {_link(progress, settings)}")


def _tell_job(job: dict[str, Any], progress: Progress) -> None:
    summary = job["summary"]
    if not summary:
        print(f"  outcome     {job['state']} {job['outcome'] or ''}: {job['reason'] or 'not finished'}")
        return
    if summary.get("analysed_with"):
        print("  outcome     a slice of the heart that another series' job reads")
        return
    print(
        textwrap.fill(_diagnosis(summary), 100, initial_indent="  diagnosis   ", subsequent_indent=" " * 14)
    )
    print(f"  outlined    {_region(summary)}")
    if summary.get("ejection_fraction_percent") is not None:
        print(f"  measured    {_heart(summary)}")
    _tell("reasoning", summary["text"])
    if progress.arrivals:
        seconds = max(arrival.arrived_at for arrival in progress.arrivals.values()) - progress.sent_at
        print(f"  time        {seconds:.1f} s from the last image to the result at the PACS")
    for arrival in progress.arrivals.values():
        print(f"  {arrival.kind:<11} {arrival.path}")


def _tell(name: str, words: str) -> None:
    print(textwrap.fill(words, 100, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14))


def _diagnosis(summary: dict[str, Any]) -> str:
    """What the model says, or what follows from a measurement, which has no confidence."""
    if summary["diagnosis"] is None:
        return summary.get("conclusion") or "none asked"
    confidence = "" if summary["confidence"] is None else f" (confidence {summary['confidence']:.2f})"
    return f"{summary['diagnosis']}{confidence}"


def _heart(summary: dict[str, Any]) -> str:
    return (
        f"volume {summary['end_diastolic_ml']:g} ml filled, {summary['end_systolic_ml']:g} ml emptied, "
        f"stroke {summary['stroke_ml']:g} ml, ejection fraction {summary['ejection_fraction_percent']:g} %"
    )


def _region(summary: dict[str, Any]) -> str:
    if summary["sop_instance_uids"]["seg"] is None:
        return "nothing"
    sizes = (("area_mm2", "mm2"), ("area_px", "pixels"), ("volume_ml", "ml"))
    parts = [f"{summary[key]:g} {unit}" for key, unit in sizes if summary.get(key) is not None]
    return f"{summary['target'] or 'region'}, {', '.join(parts)}"


def _link(progress: Progress, settings: NodeSettings) -> str:
    """Where OHIF shows the study; naming the SEG's series opens it with its overlay on."""
    if settings.viewer.ohif_root is None:
        return "not installed"
    address = f"http://{settings.http.host}:{settings.http.port}/viewer"
    overlay = f"&initialSeriesInstanceUID={progress.seg_series}" if progress.seg_series else ""
    return f"{address}?StudyInstanceUIDs={progress.study.study_instance_uid}{overlay}"


def _tell_end(settings: NodeSettings, *, is_complete: bool) -> None:
    print("\nEvery study came back complete." if is_complete else "\nNot every study came back complete.")
    print(f"The node: http://{settings.http.host}:{settings.http.port}/  logs: {settings.home / 'logs'}")
    print(NOTICE, flush=True)
