"""The command that says how long it takes here."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from dicom_node.commands.answering import EXIT_FAILED, EXIT_UNUSABLE, say
from dicom_node.commands.opening import settings_of
from dicom_node.commands.parsing import Commands, add


def register(commands: Commands) -> None:
    """Add `bench`."""
    bench_parser = add(commands, "bench", bench, "how long it takes here")
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
    program(settings_of(options), options.model, options.rounds)
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
        return say(str(error), EXIT_UNUSABLE)
    print(table)
    if options.json:
        print(json.dumps(figures))
    return 0 if figures.get("is_equal", True) else EXIT_FAILED
