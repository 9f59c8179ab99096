from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from dicom_node.cine import cine_grid
from dicom_node.frames import FrameLimits, load_series
from dicom_node.samples import SAMPLES, SampleStudy, write_samples
from dicom_node.ventricle import measure_ventricle
from tests import builders


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[SampleStudy]:
    return write_samples(tmp_path_factory.mktemp("samples"))


def test_every_sample_is_valid_and_labelled_synthetic(studies: list[SampleStudy], tmp_path: Path) -> None:
    assert [study.name for study in studies] == ["breast-ultrasound", "cardiac-mr", "leg-radiograph"]
    for study in studies:
        first = dcmread(study.paths[0])
        assert builders.standard_errors(tmp_path, first) == []
        assert str(first.PatientName).startswith("Synthetic^")
        assert first.SeriesDescription.startswith("SYNTHETIC")
        assert first.ImageComments.startswith("SYNTHETIC IMAGE")


def test_masks_belong_to_the_frames(studies: list[SampleStudy]) -> None:
    for study in studies:
        series = load_series(study.paths, FrameLimits())
        assert len(series.frames) == len(study.true_masks)
        for frame in series.frames:
            assert study.true_masks[str(frame.source.SOPInstanceUID)].shape == frame.size
            assert study.true_masks[str(frame.source.SOPInstanceUID)].any()


def contrast(study: SampleStudy) -> float:
    """Mean grey level inside the true mask, less that of a rim around it."""
    (frame,) = load_series(study.paths, FrameLimits()).frames
    mask = study.true_masks[str(frame.source.SOPInstanceUID)]
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[max(rows.min() - 15, 0) : rows.max() + 15, max(columns.min() - 15, 0) : columns.max() + 15] = True
    grey = frame.image[..., 0].astype(float)
    return float(grey[mask].mean() - grey[box & ~mask].mean())


def test_the_lesion_is_darker_than_the_gland(studies: list[SampleStudy]) -> None:
    assert contrast(studies[0]) < -30


def test_the_blood_pool_shrinks_towards_the_apex_and_is_brighter_than_muscle(
    studies: list[SampleStudy],
) -> None:
    series = load_series(studies[1].paths, FrameLimits())
    masks = [studies[1].true_masks[str(frame.source.SOPInstanceUID)] for frame in series.frames]
    assert len(masks) == 18
    assert masks[0].sum() > 1.3 * masks[15].sum()
    for frame, mask in zip(series.frames, masks, strict=True):
        grey = frame.image[..., 0].astype(float)
        ring = np.zeros_like(mask)
        for shift in ((7, 0), (-7, 0), (0, 7), (0, -7)):
            ring |= np.roll(mask, shift, (0, 1))
        assert grey[mask].mean() > 1.3 * grey[ring & ~mask].mean()


def test_the_heart_beats_weakly(studies: list[SampleStudy]) -> None:
    series = load_series(studies[1].paths, FrameLimits())
    masks = [studies[1].true_masks[str(frame.source.SOPInstanceUID)] for frame in series.frames]
    volumes = measure_ventricle(series.frames, masks, cine_grid(series.frames))
    assert volumes.grid.phases == 3
    assert (volumes.end_diastole, volumes.end_systole) == (0, 2)
    assert volumes.end_diastolic_ml == pytest.approx(223, abs=5)
    assert volumes.ejection_fraction == pytest.approx(27, abs=2)


@pytest.mark.parametrize("place", [0, 2])
def test_a_repeat_draws_the_same_files(studies: list[SampleStudy], place: int) -> None:
    again = SAMPLES[studies[place].name]()
    assert [path.read_bytes() for path in studies[place].paths] == [
        builders.part10(d) for d in again.datasets
    ]


@pytest.mark.shared
def test_grey_levels_lie_where_real_images_have_theirs(studies: list[SampleStudy], shared_data: Path) -> None:
    """Mean, spread and roughness of each sample lie within those of 60 real images of its kind."""
    for study, name in zip(studies, ("busbra", "sunnybrook_cmr", "fracatlas"), strict=True):
        folder = shared_data / "data" / "train" / name / "images"
        real = np.array([statistics(read_grey(path)) for path in sorted(folder.iterdir())[::20][:60]])
        frames = load_series(study.paths, FrameLimits()).frames
        ours = statistics(frames[len(frames) // 2].image[..., 0])
        assert (ours >= np.percentile(real, 3, axis=0)).all(), (name, ours)
        assert (ours <= np.percentile(real, 97, axis=0)).all(), (name, ours)


def read_grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def statistics(image: np.ndarray) -> np.ndarray:
    grey = image.astype(float)
    rough = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]
    return np.array([grey.mean(), grey.std(), np.percentile(grey, 90), *rough])
