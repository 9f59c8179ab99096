import json
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread

from dicom_node.analysis import analyse
from dicom_node.default_routes import DEFAULT_ROUTES
from dicom_node.frames import FrameLimits
from dicom_node.reading import AnalysisRequest
from dicom_node.run_folder import RunOptions, run_paths
from tests import builders

MASK = builders.make_ellipse((60, 81), (30, 40), (12, 18))


def options(**changes: object) -> RunOptions:
    return RunOptions(lambda _name: builders.MaskPredictor(), DEFAULT_ROUTES, **changes)


def test_a_folder_of_two_series_and_rubbish(tmp_path: Path) -> None:
    builders.write_datasets(tmp_path / "in" / "a", [builders.make_ultrasound(MASK)])
    builders.write_datasets(tmp_path / "in" / "b", builders.make_stack([MASK] * 3))
    (tmp_path / "in" / "notes.txt").write_text("not DICOM")
    (tmp_path / "in" / "DICOMDIR").write_bytes(b"ignored")
    (tmp_path / "in" / "a" / "short.dcm").write_bytes(builders.part10(builders.make_ultrasound(MASK))[:400])
    summaries = run_paths([tmp_path / "in", tmp_path / "nowhere"], tmp_path / "out", options())
    outcomes = [summary["outcome"] for summary in summaries]
    assert outcomes == ["UNREADABLE", "UNREADABLE", "UNREADABLE", "RESULT", "RESULT"]
    reasons = " ".join(str(summary.get("reason", "")) for summary in summaries)
    assert "notes.txt is not a DICOM file" in reasons
    assert "nowhere does not exist" in reasons
    assert "DICOMDIR" not in reasons
    assert [summary.get("modality") for summary in summaries[3:]] == ["US", "MR"]
    assert json.loads(json.dumps(summaries)) == summaries


def test_objects_are_those_of_the_pipeline(tmp_path: Path) -> None:
    paths = builders.write_datasets(tmp_path / "in", [builders.make_ultrasound(MASK)])
    (summary,) = run_paths(paths, tmp_path / "out", options())
    series = builders.as_loaded(tmp_path / "again", [dcmread(paths[0])])
    same = analyse(series, builders.MaskPredictor(), AnalysisRequest(str(summary["query"]), "breast lesion"))
    files = summary["files"]
    assert isinstance(files, dict)
    assert Path(files["sr"]).read_bytes() == builders.part10(same.report)
    assert len(same.segmentations) == 1
    assert Path(files["seg"]).read_bytes() == builders.part10(same.segmentations[0])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "001-key.png",
        "001-seg.dcm",
        "001-sr.dcm",
    ]


def test_the_picture_shows_the_outline_in_true_proportions(tmp_path: Path) -> None:
    paths = builders.write_datasets(tmp_path / "in", [builders.make_ultrasound(MASK, spacing_mm=(0.2, 0.1))])
    (summary,) = run_paths(paths, tmp_path / "out", options())
    picture = Image.open(summary["files"]["picture"])
    height, width = picture.height - 26, picture.width
    assert abs(height / width - (60 * 0.2) / (81 * 0.1)) < 0.01
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    yellow = (pixels[..., 0] > 200) & (pixels[..., 1] > 170) & (pixels[..., 2] < 90)
    assert yellow[: height // 2 + 150, :].sum() > 300
    assert yellow[height:].sum() > 100  # the banner


def test_model_and_query_can_be_named(tmp_path: Path) -> None:
    details = builders.SeriesDetails(modality="XC", body_part="HAND")
    source = builders.build_series([builders.make_colour_image(MASK)], details)
    paths = builders.write_datasets(tmp_path / "in", source)
    (refused,) = run_paths(paths, tmp_path / "none", options())
    assert refused["outcome"] == "NO RULE"
    assert "name a --model and a --query" in str(refused["reason"])
    (summary,) = run_paths(paths, tmp_path / "out", options(query="Outline it."))
    assert (summary["outcome"], summary["query"]) == ("RESULT", "Outline it.")


def test_what_is_not_suitable_does_not_stop_the_rest(tmp_path: Path) -> None:
    big = builders.make_stack([MASK] * 4)
    builders.write_datasets(tmp_path / "a", big)
    builders.write_datasets(tmp_path / "b", [builders.make_ultrasound(MASK)])
    summaries = run_paths(
        [tmp_path / "a", tmp_path / "b"], tmp_path / "out", options(limits=FrameLimits(max_frames=3))
    )
    assert [summary["outcome"] for summary in summaries] == ["NOT SUITABLE", "RESULT"]


def test_our_own_results_are_left_alone(tmp_path: Path) -> None:
    paths = builders.write_datasets(tmp_path / "in", [builders.make_ultrasound(MASK)])
    run_paths(paths, tmp_path / "in" / "results", options())
    summaries = run_paths([tmp_path / "in"], tmp_path / "out", options())
    assert sorted(str(summary["outcome"]) for summary in summaries) == [
        "NO RULE",
        "NO RULE",
        "RESULT",
        "UNREADABLE",
    ]
