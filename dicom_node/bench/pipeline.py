"""How long it takes here: the pipeline from job start to stored SEG and SR, and the models alone."""

import io
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from dicom_node.attempt import claim_next
from dicom_node.bench.questions import measure_questions, sentence, unlike
from dicom_node.completion import complete_studies
from dicom_node.default_routes import MODEL
from dicom_node.joblist import plain_jobs
from dicom_node.pipeline import Services, run_job
from dicom_node.predictors import WorkerModels
from dicom_node.samples import breast_ultrasound
from dicom_node.services import open_decoders
from dicom_node.settings import NodeSettings, load_settings
from dicom_node.tasks import job_services
from inference.contract import Image
from inference.runtime import list_models
from inference.runtime.benchmark import print_report, run_benchmark
from inference.runtime.model_repository import open_package
from inference.runtime.peer_benchmark import PEER_VIT, PeerRow, measure_package, measure_sam, peer_table
from storage.database import Database, upgrade
from storage.index import Origin, request_completion

GREY = 2  # axes of the pixels


@dataclass(frozen=True)
class Round:
    """One ultrasound image: seconds from job start (claim) to SEG and SR stored, durable and indexed."""

    seconds: float
    run_s: float  # of these, the model
    outcome: str


def bench_inference(settings: NodeSettings, model: str | None, rounds: int) -> None:
    """Latency of a model package, or of all that are here, on the sample ultrasound: tables, a JSON line.

    Beside PyTorch eager, with SAM's ViT-B at full size (`sam_vit_b`) as one of them.
    """
    image, reports, peers = _sample_image(), {}, list[PeerRow]()
    for info in list_models(settings.inference):
        if model in (None, info.name):
            report = run_benchmark(info.name, settings.inference, repeats=rounds, image=image)
            print_report(report)
            reports[info.name] = asdict(report)
            package = open_package(settings.inference.model_repository, info.name)
            peers += measure_package(package, settings.inference, image, rounds)
    if model in (None, PEER_VIT):
        peers += measure_sam(rounds, settings.inference.threads)
    print(peer_table(peers))
    peer_figures = [asdict(row) for row in peers]
    print(json.dumps({"bench": "inference", "packages": reports, "peers": peer_figures}))


def _sample_image() -> Image:
    """The sample ultrasound as a model gets it."""
    (dataset,) = breast_ultrasound().datasets
    grey = dataset.pixel_array
    return Image(np.repeat(grey[..., None], 3, axis=2) if grey.ndim == GREY else grey)


def bench_pipeline(settings: NodeSettings, model: str | None, rounds: int) -> None:
    """Time `rounds` jobs on one synthetic ultrasound image each: a table, and one JSON line."""
    model = model or MODEL
    with tempfile.TemporaryDirectory(prefix="dicom-node-bench-") as folder:
        bench_settings = _settings_in(Path(folder), settings, model)
        started = time.perf_counter()
        models = WorkerModels(bench_settings)
        version = models.open(model).version
        open_s = time.perf_counter() - started
        upgrade(bench_settings.storage.database_url)
        database = Database(bench_settings.storage.database_url)
        decoders = open_decoders(bench_settings)
        services = job_services(bench_settings, database, models.open, decoders)
        measured = [_round(bench_settings, services, number) for number in range(rounds + 1)][
            1:
        ]  # first: warm
        asked = measure_questions(models.open(model), _sample_image(), rounds)
        models.close()
        decoders.close()
        database.close()
    _print_table(measured, open_s)
    print(sentence(asked))
    more = {"open_model_s": round(open_s, 3), "second_question": asdict(asked)}
    print(json.dumps(_figures(measured, model, version) | more))


def _settings_in(folder: Path, settings: NodeSettings, model: str) -> NodeSettings:
    """The same node on an empty home, with every image going to `model`."""
    routes = tuple(route.model_copy(update={"model": model}) for route in settings.routes)
    fresh = load_settings(folder)
    return fresh.model_copy(
        update={"routes": routes, "inference": settings.inference, "limits": settings.limits}
    )


def _round(settings: NodeSettings, services: Services, number: int) -> Round:
    job_id = _receive_one(settings, services, number)
    started = time.perf_counter()
    job = claim_next(services, "bench", settings)
    if job is None or job.job_id != job_id:
        raise RuntimeError("the job of the benchmark was taken by somebody else")
    run_job(job, services)
    seconds = time.perf_counter() - started
    row = next(row for row in plain_jobs(services.database) if row["job_id"] == job_id)
    run_s = row["summary"]["seconds"]["run"] if row["summary"] else 0.0
    return Round(seconds, run_s, row["outcome"])


def _receive_one(settings: NodeSettings, services: Services, number: int) -> str:
    """Receive a sample under new UIDs, with pixels of its own; complete its study, give the id of its job."""
    (dataset,) = breast_ultrasound().datasets
    dataset.PixelData = unlike(dataset.pixel_array, number).tobytes()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    services.receiver.receive_part10([file.getvalue()], Origin("IMPORT", "bench"))
    with services.database.transaction() as tx:
        request_completion(tx, str(dataset.StudyInstanceUID), "bench")
    (job_id,) = complete_studies(services.database, settings)
    return job_id


def _print_table(measured: list[Round], open_s: float) -> None:
    print(
        f"One ultrasound image, job start to stored SEG and SR; {os.cpu_count()} cores, "
        f"model opened in {open_s:.2f} s."
    )
    print(f"{'ROUND':<8}{'SECONDS':>9}{'MODEL':>9}{'REST':>9}  OUTCOME")
    for number, each in enumerate(measured, start=1):
        rest = each.seconds - each.run_s
        print(f"{number:<8}{each.seconds:>9.3f}{each.run_s:>9.3f}{rest:>9.3f}  {each.outcome}")


def _figures(measured: list[Round], model: str, version: str) -> dict[str, object]:
    seconds = [each.seconds for each in measured]
    return {
        "bench": "pipeline",
        "model": model,
        "model_version": version,
        "rounds": len(measured),
        "median_s": round(statistics.median(seconds), 3),
        "min_s": round(min(seconds), 3),
        "max_s": round(max(seconds), 3),
        "model_median_s": round(statistics.median(each.run_s for each in measured), 3),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
