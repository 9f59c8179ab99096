import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.air.gate import check_together
from dicom_node.analysis import analyse
from dicom_node.forms.form import Form, Recipient
from dicom_node.frames import FrameLimits, load_series
from dicom_node.pipeline import Services, run_job, warm_up
from dicom_node.progress import EVERY_S, Progress
from dicom_node.reading import AnalysisRequest
from inference.contract import Image, Prediction, Prompt
from inference.errors import InputRejected, ModelNotFound
from storage.database import Database
from storage.errors import LeaseLost
from storage.files import DiskFiles
from storage.index import Origin, instances_of_study
from storage.jobs import ClaimedJob, JobRequest, JobState, claim_job, create_job
from storage.part10 import absolute
from storage.worklist import newest_deliveries, newest_jobs
from tests import builders, formed
from tests.dicom_node.test_earlier_report import make_report
from tests.doors import make_receiver
from tests.stub_engine import StubPredictor

BOTH = (Recipient("PACS"), Recipient("ARCHIVE"))
SIZE = (60, 81)
QUERY = "Outline the breast lesion in this ultrasound image. Is it benign or malignant?"


class Counting(builders.MaskPredictor):
    """Notes how many images it holds at once."""

    most = 0

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        assert like is not None
        self.most = max(self.most, len(images))
        return super().segment(images, prompt, like)


def masks_of(radii: Sequence[int]) -> list[np.ndarray]:
    return [
        builders.make_ellipse(SIZE, (30, 40), (radius, radius + 2)) if radius else np.zeros(SIZE, bool)
        for radius in radii
    ]


def test_the_frame_with_the_largest_region_speaks(tmp_path: Path) -> None:
    stack = builders.make_stack(masks_of([4, 6, 8, 7, 12, 3, 5]))
    predictor = Counting()
    result = analyse(builders.as_loaded(tmp_path, stack), predictor, AnalysisRequest(QUERY))
    assert result.summary["key_frame"] == {
        "index": 4,
        "sop_instance_uid": str(stack[4].SOPInstanceUID),
        "frame_number": None,
    }
    assert predictor.most <= 8


def test_without_any_region_the_middle_frame_speaks(tmp_path: Path) -> None:
    stack = builders.make_stack(masks_of([0] * 5))
    result = analyse(builders.as_loaded(tmp_path, stack), builders.MaskPredictor(), AnalysisRequest(QUERY))
    assert result.findings.key.source.SOPInstanceUID == stack[2].SOPInstanceUID
    assert result.segmentations == ()


def test_every_frame_has_its_own_mask(tmp_path: Path) -> None:
    masks = masks_of([4, 0, 8, 7, 12, 3, 5, 9, 10, 11, 6, 4])
    stack = builders.make_stack(masks)
    result = analyse(builders.as_loaded(tmp_path, stack), Counting(), AnalysisRequest(QUERY))
    assert len(result.segmentations) == 1
    assert result.segmentations[0].NumberOfFrames == 11
    pixels = result.segmentations[0].pixel_array
    wanted = [mask for mask in masks if mask.any()]
    assert all((got.astype(bool) == want).all() for got, want in zip(pixels, wanted, strict=True))


def test_volume_counts_uneven_distances(tmp_path: Path) -> None:
    masks = masks_of([10] * 3)
    stack = builders.make_stack(masks, spacing=("1", "1"))
    for dataset, z in zip(stack, (0, 2, 10), strict=True):
        dataset.ImagePositionPatient = [0, 0, z]
    result = analyse(builders.as_loaded(tmp_path, stack), builders.MaskPredictor(), AnalysisRequest(QUERY))
    assert result.summary["volume_ml"] == pytest.approx(masks[0].sum() * (2 + 5 + 8) / 1000, abs=0.01)
    assert result.summary["area_mm2"] == pytest.approx(masks[0].sum(), abs=0.01)


def test_repeated_positions_are_no_stack(tmp_path: Path) -> None:
    stack = builders.make_stack(masks_of([10] * 3))
    for dataset in stack:
        dataset.ImagePositionPatient = [0, 0, 5]  # a cine series
    result = analyse(builders.as_loaded(tmp_path, stack), builders.MaskPredictor(), AnalysisRequest(QUERY))
    assert "volume_ml" not in result.summary


def test_specks_are_no_region(tmp_path: Path) -> None:
    speck = np.zeros(SIZE, bool)
    speck[5, 5:8] = True
    source = builders.make_ultrasound(speck)
    result = analyse(builders.as_loaded(tmp_path, [source]), builders.MaskPredictor(), AnalysisRequest(QUERY))
    assert result.segmentations == ()


def test_summary_is_json_and_complete(tmp_path: Path) -> None:
    result = analyse(
        builders.as_loaded(tmp_path, [builders.make_ultrasound()]),
        builders.MaskPredictor(),
        AnalysisRequest(QUERY),
    )
    summary = json.loads(json.dumps(result.summary))
    assert summary.keys() >= {
        "diagnosis", "confidence", "text", "reasoning", "target", "area_mm2", "key_frame", "inputs",
        "sop_instance_uids", "seconds", "model", "model_version", "model_digest", "query", "remarks",
    }  # fmt: skip
    assert summary["inputs"]["count"] == 1
    assert summary["sop_instance_uids"]["sr"] == result.report.SOPInstanceUID
    assert "Test^Synthetic" not in json.dumps(summary)


def test_warming_up_takes_the_first_segmentation_s_time() -> None:
    started = time.process_time()
    warm_up()
    first = time.process_time() - started
    started = time.process_time()
    warm_up()
    assert time.process_time() - started <= max(first, 0.5)


# ---- run_job: from claimed row to stored objects


@pytest.fixture
def services(database: Database, files_root: Path) -> Services:
    receiver = make_receiver(database, files_root)
    stub = builders.MaskPredictor()
    return Services(database, receiver, DiskFiles(files_root), lambda _name: stub, FrameLimits(), BOTH)


def receive_and_claim(services: Services, datasets: Sequence[builders.Dataset]) -> ClaimedJob:
    for dataset in datasets:
        services.receiver.receive_part10([builders.part10(dataset)], Origin("IMPORT", "test"))
    return claim_new(services, datasets[0])


def claim_new(services: Services, dataset: builders.Dataset, version: int = 1) -> ClaimedJob:
    request = JobRequest(
        str(dataset.StudyInstanceUID),
        version,
        str(dataset.SeriesInstanceUID),
        "rule",
        "stub",
        QUERY,
        "breast lesion",
    )
    with services.database.transaction() as tx:
        job_id = create_job(tx, request)
        assert job_id is not None
        job = claim_job(tx, job_id, "worker", 30.0, 3)
    assert job is not None
    return job


def own_results(services: Services, job: ClaimedJob) -> list[Path]:
    with services.database.reading() as tx:
        rows = [
            row for row in instances_of_study(tx, job.study_instance_uid) if row.origin_kind == "OWN RESULT"
        ]
        return [absolute(services.files.spool, row.path) for row in rows]


def test_a_job_stores_results_and_queues_their_delivery(services: Services) -> None:
    job = receive_and_claim(services, [builders.make_ultrasound()])
    run_job(job, services)
    with services.database.reading() as tx:
        (row,) = newest_jobs(tx)
        deliveries = newest_deliveries(tx, job_id=job.job_id)
    assert (row.state, row.outcome, row.model_version) == (JobState.COMPLETED, "RESULT", "0.0.1")
    assert json.loads(row.summary or "")["diagnosis"] == "benign"
    stored = [dcmread(path) for path in own_results(services, job)]
    assert {dataset.Modality for dataset in stored} == {"SEG", "SR"}
    wanted = {(str(each.SOPInstanceUID), name) for each in stored for name in ("PACS", "ARCHIVE")}
    assert {(each.sop_instance_uid, each.destination) for each in deliveries} == wanted


def test_the_study_s_own_report_is_told_to_the_model(services: Services) -> None:
    source = builders.make_ultrasound()
    job = receive_and_claim(services, [source, make_report("An oval mass.", study_of=source)])
    told: list[Prompt] = []

    class Listening(builders.MaskPredictor):
        def predict(self, image: Image, prompt: Prompt) -> Prediction:
            told.append(prompt)
            return super().predict(image, prompt)

    listening = replace(services, open_predictor=lambda _name: Listening())
    run_job(job, listening)
    assert told == [Prompt(QUERY, "oval")]
    run_job(claim_new(services, source, version=2), listening)
    assert {prompt.report for prompt in told} == {"oval"}  # never what this node has said itself


def test_a_long_series_says_how_far_it_is(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.progress.EVERY_S", 0.0)
    stack = builders.make_stack(masks_of([5] * 20))
    seen: list[tuple[int | None, int | None]] = []

    class Looking(builders.MaskPredictor):
        def segment(
            self, images: Sequence[Image], prompt: Prompt, like: Prediction | None
        ) -> list[Prediction]:
            with services.database.reading() as tx:
                (row,) = newest_jobs(tx)
                seen.append((row.images_done, row.images_all))
            return super().segment(images, prompt, like)

    job = receive_and_claim(services, stack)
    run_job(job, replace(services, open_predictor=lambda _name: Looking()))
    assert seen == [(1, 20), (9, 20), (17, 20)]


def test_progress_is_written_now_and_then_and_never_breaks_a_job(services: Services) -> None:
    job = receive_and_claim(services, [builders.make_ultrasound()])
    now = [0.0]
    progress = Progress(services.database, job, lambda: now[0])

    def written() -> int | None:
        with services.database.reading() as tx:
            return newest_jobs(tx)[0].images_done

    progress(1, 9)
    assert written() is None  # a short job is over before anybody asks
    now[0] = EVERY_S
    progress(2, 9)
    progress(3, 9)
    assert written() == 2
    services.database.close()
    now[0] = 3 * EVERY_S
    progress(4, 9)


def test_running_the_same_again_stores_nothing_twice(services: Services) -> None:
    source = builders.make_ultrasound()
    job = receive_and_claim(services, [source])
    run_job(job, services)
    before = own_results(services, job)
    again = claim_new(services, source, version=2)
    run_job(again, services)
    assert own_results(services, job) == before


def test_a_lost_lease_stores_nothing(services: Services) -> None:
    job = receive_and_claim(services, [builders.make_ultrasound()])
    with pytest.raises(LeaseLost):
        run_job(replace(job, fence=job.fence - 1), services)
    assert own_results(services, job) == []
    with services.database.reading() as tx:
        assert newest_jobs(tx)[0].state == JobState.IN_PROGRESS
        assert newest_deliveries(tx, job_id=job.job_id) == []


def test_two_workers_at_once_end_in_one_result(services: Services) -> None:
    job = receive_and_claim(services, [builders.make_ultrasound()])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run_job(job, services)
        except (LeaseLost, Exception) as error:  # noqa: BLE001 - collected for the assertion
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(own_results(services, job)) == 2
    assert len(failures) == 1


def test_what_is_not_suitable_is_cancelled_with_the_reason(services: Services) -> None:
    dataset = builders.make_ultrasound()
    del dataset.PixelData
    job = receive_and_claim(services, [dataset])
    run_job(job, services)
    with services.database.reading() as tx:
        (row,) = newest_jobs(tx)
    assert (row.state, row.outcome) == (JobState.CANCELED, "NOT SUITABLE")
    assert "cannot be decoded" in (row.reason or "")


class Refusing(builders.MaskPredictor):
    """Cannot answer this prompt, now or later."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        del image, prompt
        raise InputRejected("the image is 1 pixel high; send a larger one")


def test_what_the_model_refuses_is_cancelled_with_the_reason(services: Services) -> None:
    job = receive_and_claim(services, [builders.make_ultrasound()])
    run_job(job, replace(services, open_predictor=lambda _name: Refusing()))
    with services.database.reading() as tx:
        (row,) = newest_jobs(tx)
    assert (row.outcome, row.reason) == ("NOT SUITABLE", "the image is 1 pixel high; send a larger one")


def test_what_may_work_later_is_left_to_the_task(services: Services) -> None:
    def missing(_name: str) -> builders.MaskPredictor:
        raise ModelNotFound("there is no model package stub")

    job = receive_and_claim(services, [builders.make_ultrasound()])
    with pytest.raises(ModelNotFound):
        run_job(job, replace(services, open_predictor=missing))
    with services.database.reading() as tx:
        assert newest_jobs(tx)[0].state == JobState.IN_PROGRESS


# ---- real files


class Central(StubPredictor):
    """Outlines an ellipse in the middle of whatever it is shown."""

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        height, width = image.pixels.shape[:2]
        mask = builders.make_ellipse((height, width), (height / 2, width / 2), (height / 4, width / 5))
        return replace(super().predict(image, prompt), mask=mask, has_region=True)


REAL_FILES = (
    "cornerstone3D/testImages/CT1_J2KR",
    "pydicom/MR_small.dcm",
    "pydicom/examples_palette.dcm",
    "pydicom/dicomdirtests/77654033/CR2/6247",
    "pydicom-data/emri_small_jpeg_ls_lossless.dcm",
    "pydicom-data/OBXXXX1A_rle_2frame.dcm",
)


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", REAL_FILES)
def test_results_of_real_files_are_valid(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / "data" / "dicom" / name
    series = load_series([path], FrameLimits())
    result = analyse(series, Central(), AnalysisRequest(QUERY), profiles=formed.PROFILES)
    assert {made.form for made in result.objects} == set(Form)
    assert len(result.segmentations) == 1
    assert result.segmentations[0].NumberOfFrames == len(series.frames)
    assert result.segmentations[0].PatientID == str(series.datasets[0].get("PatientID") or "")
    assert check_together(result.datasets, series.datasets) == []
    assert [error for made in result.objects for error in formed.errors_of(tmp_path, made)] == []
