"""Latency per stage, its floor, tokens, memory and the cost of more reasoning paths, of one package."""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.contract import Image, Prediction, Predictor, Prompt
from inference.runtime import open_predictor, predictor_class
from inference.runtime.engine import Engine
from inference.runtime.graph_work import GraphWork, read_profile
from inference.runtime.model_repository import ModelPackage, open_package
from inference.runtime.onnx_engine import OnnxEngine, available_cores
from inference.runtime.path_cost import QUERY, ImageCost, PathCost, measure_images, measure_paths
from inference.runtime.predictors import Sim4SegPredictor
from inference.settings import InferenceSettings

# stage of a prediction -> the graph it runs
GRAPHS = {
    "image_encoder": "image_encoder.onnx",
    "language_prefill": "language_prefill.onnx",
    "language_steps": "language_step.onnx",
    "mask_decoder": "mask_decoder.onnx",
    "segmenter": "segmenter.onnx",
}


@dataclass(frozen=True)
class Machine:
    """What this machine reached just now, all cores: the roof above every floor."""

    cores: int
    gflops: float  # numpy float32 matrix product, 10^9 operations per second
    gb_per_s: float  # numpy copy, read and written


@dataclass(frozen=True)
class Stage:
    """One stage of a prediction: seconds measured and the least they could be on this machine."""

    name: str
    runs: int  # graph runs in one prediction
    median_s: float
    fastest_s: float
    slowest_s: float
    gflop: float
    parameter_mb: float
    floor_s: float | None  # None where the work is not counted
    times_floor: float | None


@dataclass(frozen=True)
class BenchmarkReport:
    """What `dicom-node bench inference` prints of one package."""

    model: str
    version: str
    digest: str
    execution_providers: tuple[str, ...]
    threads: int
    repeats: int
    open_s: float
    peak_rss_mb: float
    has_region: bool
    images_per_s: float
    tokens_per_s: float | None  # None where nothing is said
    paths: PathCost | None  # None where there is no reasoning in paths
    at_once: ImageCost  # questions about several images, as a node answers them
    machine: Machine
    stages: tuple[Stage, ...]
    uncounted: tuple[str, ...]  # operators whose work is missing from the floors


def run_benchmark(
    name: str,
    settings: InferenceSettings,
    *,
    repeats: int = 5,
    image: Image,
    query: str = QUERY,
) -> BenchmarkReport:
    """Measure `repeats` predictions of one image after a warm-up, and set them against the machine's roof."""
    package = open_package(settings.model_repository, name)
    prompt = Prompt(query)
    started = time.perf_counter()
    predictor = predictor_class(package)(package, settings)
    open_s = time.perf_counter() - started
    predictions, machine = _predict_and_measure(predictor, image, prompt, max(1, repeats))
    peak_rss_mb = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )  # before the second set of engines
    seconds = {stage: [one.seconds[stage] for one in predictions] for stage in predictions[0].seconds}
    paths = measure_paths(predictor, image, repeats) if isinstance(predictor, Sim4SegPredictor) else None
    at_once = measure_images(open_predictor(name, settings), image, repeats, query=query)
    work = _profiled_work(package, settings, image, prompt)
    machine = _raised_roof(machine, seconds, work)
    stages = _stages(seconds, work, machine)
    steps = next((stage for stage in stages if stage.name == "language_steps"), None)
    return BenchmarkReport(
        model=package.manifest.model.name,
        version=package.manifest.model.version,
        digest=package.digest,
        execution_providers=settings.execution_providers,
        threads=settings.threads or available_cores(),
        repeats=len(predictions),
        open_s=open_s,
        peak_rss_mb=peak_rss_mb,
        has_region=predictions[0].has_region,
        images_per_s=1 / statistics.median(seconds["total"]),
        tokens_per_s=steps.runs / steps.median_s if steps else None,
        paths=paths,
        at_once=at_once,
        machine=machine,
        stages=stages,
        uncounted=tuple(sorted(set().union(*(graph.uncounted for graph in work.values())))),
    )


def print_report(report: BenchmarkReport) -> None:
    """The table of one package."""
    machine = report.machine
    print(
        f"{report.model} {report.version}: {', '.join(report.execution_providers)}, {report.threads} threads"
    )
    print(
        f"roof: {machine.gflops:.0f} GFLOP/s, {machine.gb_per_s:.1f} GB/s on {machine.cores} cores, just now"
    )
    print(
        f"{'stage':<18}{'runs':>5}{'median':>10}{'fastest':>10}{'slowest':>10}{'GFLOP':>8}{'floor':>10}{'x':>7}"
    )
    for stage in report.stages:
        floor = "-" if stage.floor_s is None else f"{1000 * stage.floor_s:.1f} ms"
        times = "-" if stage.times_floor is None else f"{stage.times_floor:.1f}"
        seconds = "".join(f"{1000 * s:>7.1f} ms" for s in (stage.median_s, stage.fastest_s, stage.slowest_s))
        print(f"{stage.name:<18}{stage.runs:>5}{seconds}{stage.gflop:>8.2f}{floor:>10}{times:>7}")
    region = "with" if report.has_region else "without"
    words = "" if report.tokens_per_s is None else f"; {report.tokens_per_s:.0f} tokens/s"
    print(f"{report.repeats} predictions {region} a region; {report.images_per_s:.1f} images/s{words}")
    if report.paths:
        print(_said(report.paths))
    print(
        f"{report.at_once.images} images side by side: {1000 * report.at_once.together_s:.0f} ms, one after "
        f"another {report.at_once.apart_over_together:.2f} times that"
    )
    print(f"opened in {report.open_s:.2f} s; peak memory {report.peak_rss_mb:.0f} MB")
    if report.uncounted:
        print(f"floors are too low: {', '.join(report.uncounted)} not counted")


def _said(cost: PathCost) -> str:
    return (
        f"{cost.paths} reasoning paths together cost {cost.together_over_one:.2f} times one path "
        f"({1000 * cost.together_s:.0f} ms to {1000 * cost.one_s:.0f} ms), and one after another "
        f"{cost.apart_over_together:.2f} times that"
    )


def _predict_and_measure(
    predictor: Predictor, image: Image, prompt: Prompt, repeats: int
) -> tuple[list[Prediction], Machine]:
    """Predictions and the machine by turns, so that both meet the same neighbours; the best roof counts."""
    predictions, machines = [], []
    for _ in range(repeats):
        predictions.append(predictor.predict(image, prompt))
        machines.append(measure_machine(repeats=3))
    best = Machine(
        machines[0].cores,
        max(machine.gflops for machine in machines),
        max(machine.gb_per_s for machine in machines),
    )
    return predictions, best


def measure_machine(side: int = 1024, repeats: int = 8) -> Machine:
    """Best of `repeats` of a float32 matrix product and of a copy far larger than any cache."""
    matrix = np.random.default_rng(7).standard_normal((side, side), np.float32)
    source = np.zeros(side * side * 64, np.uint8)
    target = np.ones_like(source)
    product_s = min(_seconds(lambda: matrix @ matrix) for _ in range(repeats))
    copy_s = min(_seconds(lambda: np.copyto(target, source)) for _ in range(repeats))
    return Machine(available_cores(), 2 * side**3 / product_s / 1e9, 2 * source.size / copy_s / 1e9)


def _profiled_work(
    package: ModelPackage, settings: InferenceSettings, image: Image, prompt: Prompt
) -> dict[str, GraphWork]:
    """Graph file name -> its work in a warm-up and one prediction, counted on engines that keep a profile."""
    engines: dict[str, OnnxEngine] = {}
    with tempfile.TemporaryDirectory() as folder:

        def open_engine(name: str, model: bytes) -> Engine:
            engines[name] = OnnxEngine(
                name,
                model,
                execution_providers=settings.execution_providers,
                threads=settings.threads,
                profile_prefix=Path(folder) / name,
            )
            return engines[name]

        predictor_class(package)(package, settings, open_engine=open_engine).predict(image, prompt)
        return {name: read_profile(engine.end_profiling()) for name, engine in engines.items()}


def _raised_roof(machine: Machine, seconds: dict[str, list[float]], work: dict[str, GraphWork]) -> Machine:
    """On a busy machine a stage may have been luckier than the matrix product: then its rate is the roof."""
    rates = [
        (work[graph].runs - 1) * work[graph].per_run()[0] / min(seconds[stage]) / 1e9
        for stage, graph in GRAPHS.items()
        if stage in seconds
    ]
    return replace(machine, gflops=max(machine.gflops, *rates))


def _stages(
    seconds: dict[str, list[float]], work: dict[str, GraphWork], machine: Machine
) -> tuple[Stage, ...]:
    parts = [_stage(name, values, work, machine) for name, values in seconds.items() if name != "total"]
    total = _stage("total", seconds["total"], work, machine)
    floor = sum(part.floor_s or 0.0 for part in parts)
    gflop = sum(part.gflop for part in parts)
    whole = replace(total, gflop=gflop, floor_s=floor, times_floor=total.median_s / floor if floor else None)
    return (*parts, whole)


def _stage(name: str, values: list[float], work: dict[str, GraphWork], machine: Machine) -> Stage:
    graph = work.get(GRAPHS.get(name, ""))
    runs = 0 if graph is None else graph.runs - 1  # one run was the warm-up
    flop, parameter_bytes = (0.0, 0.0) if graph is None else graph.per_run()
    median = statistics.median(values)
    # Each run reads its parameters once and does its products at the roof; activations are taken as free.
    floor = runs * max(flop / machine.gflops, parameter_bytes / machine.gb_per_s) / 1e9
    return Stage(
        name=name,
        runs=runs,
        median_s=median,
        fastest_s=min(values),
        slowest_s=max(values),
        gflop=runs * flop / 1e9,
        parameter_mb=parameter_bytes / 1e6,
        floor_s=floor or None,
        times_floor=median / floor if floor else None,
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
