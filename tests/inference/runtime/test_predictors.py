"""Image and prompt in, mask and diagnosis out, on a package made up by the test."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from inference.contract import Image, Prediction, Predictor, Prompt
from inference.errors import EngineRejected, InputRejected, OutputInvalid
from inference.runtime import open_predictor
from inference.runtime.onnx_engine import OnnxEngine, available_cores
from inference.runtime.predictors import Sim4SegPredictor
from inference.runtime.serving import on_onnx_runtime
from inference.settings import InferenceSettings
from tests.inference.runtime import tiny_package

PROMPT = Prompt(tiny_package.QUERY)
Box = tuple[int, int, int, int]  # top, left, height, width


def bright_box(source_hw: tuple[int, int], box: Box) -> tuple[Image, np.ndarray]:
    top, left, height, width = box
    mask = np.zeros(source_hw, bool)
    mask[top : top + height, left : left + width] = True
    return Image(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)), mask


def ramp(source_hw: tuple[int, int], low: int, high: int) -> Image:
    """Grey levels that rise from one corner to the other: not blank, and no lesion."""
    height, width = source_hw
    level = np.add.outer(np.linspace(0, 1, height), np.linspace(0, 1, width)) / 2
    grey = (low + (high - low) * level).astype(np.uint8)
    return Image(np.repeat(grey[..., None], 3, axis=2))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def same(first: Prediction, second: Prediction) -> bool:
    return (
        (first.text, first.diagnosis, first.predicted_iou)
        == (second.text, second.diagnosis, second.predicted_iou)
        and np.array_equal(first.mask, second.mask)
        and np.array_equal(first.similarity, second.similarity)
        and np.array_equal(first.region, second.region)
    )


def test_a_predictor_keeps_the_contract(predictor: Sim4SegPredictor) -> None:
    kept: Predictor = predictor
    assert (kept.name, kept.version, len(kept.digest)) == ("tiny", "0.0.1", 64)


def test_a_bright_lesion_is_outlined_and_named(predictor: Sim4SegPredictor) -> None:
    image, mask = bright_box((300, 200), (30, 10, 60, 60))  # upper left, 6 percent: what the answer says
    prediction = predictor.predict(image, PROMPT)
    assert prediction.text == tiny_package.ANSWER.strip()
    assert prediction.has_region
    assert prediction.is_well_formed
    assert (prediction.modality, prediction.target) == ("breast ultrasound image", "breast lesion")
    assert prediction.reasoning.startswith("Firstly, this is a breast ultrasound image")
    assert prediction.reasoning.endswith("homogeneous.")
    assert dice(prediction.mask, mask) > 0.93
    assert prediction.predicted_iou == pytest.approx(0.9)


def test_the_diagnosis_carries_its_probability(predictor: Sim4SegPredictor) -> None:
    image, _ = bright_box((64, 64), (8, 8, 30, 30))
    diagnosis = predictor.predict(image, PROMPT).diagnosis
    assert diagnosis is not None
    assert diagnosis.label == "benign"
    assert diagnosis.confidence == pytest.approx(np.exp(8) / (np.exp(8) + 7), rel=1e-5)


def test_arrays_have_the_promised_shapes_and_types(predictor: Sim4SegPredictor) -> None:
    image, _ = bright_box((300, 200), (60, 40, 60, 60))
    prediction = predictor.predict(image, PROMPT)
    assert (prediction.mask.shape, prediction.mask.dtype) == ((300, 200), np.bool_)
    assert (prediction.similarity.shape, prediction.similarity.dtype) == ((16, 16), np.float32)
    assert (prediction.region.shape, prediction.region.dtype) == ((16, 16), np.bool_)
    assert not prediction.similarity[:, 11:].any()  # 200 of 300 columns: the rest is padding


def test_where_nothing_is_to_be_outlined_no_mask_is_made(predictor: Sim4SegPredictor) -> None:
    prediction = predictor.predict(ramp((50, 80), 0, 60), PROMPT)
    assert not prediction.has_region
    assert (prediction.mask.shape, prediction.mask.any()) == ((50, 80), False)
    assert prediction.text == tiny_package.EMPTY_ANSWER.strip()
    assert prediction.diagnosis is not None
    assert prediction.diagnosis.label == "no fracture"
    assert prediction.is_well_formed
    assert prediction.target is None
    assert "image_encoder" not in prediction.seconds


@pytest.mark.parametrize("source_hw", [(200, 600), (600, 200), (512, 512), (97, 131), (1500, 900)])
@pytest.mark.parametrize("corner", [(0.1, 0.1), (0.1, 0.6), (0.6, 0.1), (0.55, 0.55)])
def test_the_mask_lies_where_the_lesion_is(
    predictor: Sim4SegPredictor, source_hw: tuple[int, int], corner: tuple[float, float]
) -> None:
    height, width = source_hw
    box = (int(corner[0] * height), int(corner[1] * width), int(0.3 * height), int(0.3 * width))
    image, mask = bright_box(source_hw, box)
    found = predictor.predict(image, PROMPT).mask
    assert dice(found, mask) > 0.85  # the tiny model sees cells of 4 pixels of its square
    tolerance = 3 * max(source_hw) / 256
    assert np.allclose(np.argwhere(found).mean(axis=0), np.argwhere(mask).mean(axis=0), atol=tolerance)


@pytest.mark.parametrize("source_hw", [(16, 16), (16, 4000), (4000, 16), (30, 20), (256, 255)])
def test_strange_shapes_still_come_back(predictor: Sim4SegPredictor, source_hw: tuple[int, int]) -> None:
    prediction = predictor.predict(ramp(source_hw, 243, 255), PROMPT)
    assert prediction.mask.shape == source_hw
    assert prediction.mask.all()


def test_the_same_image_gives_the_same_prediction(
    predictor: Sim4SegPredictor, pristine_repository: Path
) -> None:
    image, _ = bright_box((300, 200), (60, 40, 60, 60))
    first = predictor.predict(image, PROMPT)
    assert same(first, predictor.predict(image, PROMPT))
    reopened = open_predictor("tiny", InferenceSettings(model_repository=pristine_repository, threads=1))
    assert same(first, reopened.predict(image, PROMPT))


def test_every_stage_is_timed(predictor: Sim4SegPredictor) -> None:
    image, _ = bright_box((64, 64), (8, 8, 30, 30))
    seconds = predictor.predict(image, PROMPT).seconds
    stages = set(seconds) - {"total"}
    assert stages == {
        "preprocess",
        "language_prefill",
        "language_steps",
        "image_encoder",
        "mask_decoder",
        "postprocess",
    }
    assert seconds["total"] >= sum(seconds[stage] for stage in stages)


def test_every_frame_of_a_series_is_looked_at_for_itself(predictor: Sim4SegPredictor) -> None:
    boxes = [(10, 10, 40, 40), (60, 50, 30, 40), (5, 60, 50, 30)]
    pairs = [bright_box((120, 100), box) for box in boxes]
    black = Image(np.zeros((70, 90, 3), np.uint8))
    predictions = predictor.segment([*(image for image, _ in pairs), black], PROMPT, None)
    assert [prediction.has_region for prediction in predictions] == [True, True, True, False]
    for (image, _), prediction in zip(pairs, predictions, strict=False):
        assert same(prediction, predictor.predict(image, PROMPT))
    assert predictions[3].mask.shape == (70, 90)
    assert predictions[3].text.startswith("Not suitable: the image is blank")


def test_beside_a_key_frame_answers_end_at_seg_with_the_same_mask(predictor: Sim4SegPredictor) -> None:
    image, _ = bright_box((120, 100), (10, 10, 40, 40))
    key = predictor.predict(image, PROMPT)
    other, _ = bright_box((120, 100), (60, 50, 30, 40))
    whole = predictor.predict(other, PROMPT)
    (short,) = predictor.segment([other], PROMPT, key)
    assert short.text == "It is [SEG]"
    assert np.array_equal(short.mask, whole.mask)
    assert np.array_equal(short.similarity, whole.similarity)
    assert (short.diagnosis, short.reasoning) == (None, "")
    assert short.is_well_formed


def test_no_images_are_no_predictions(predictor: Sim4SegPredictor) -> None:
    assert predictor.segment([], PROMPT, None) == []


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((0, 20, 3), np.uint8),
        np.zeros((2, 20, 20, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(predictor: Sim4SegPredictor, pixels: np.ndarray) -> None:
    with pytest.raises(InputRejected, match="must be"):
        predictor.predict(Image(pixels), PROMPT)


def test_an_image_is_not_changed(predictor: Sim4SegPredictor) -> None:
    image, _ = bright_box((64, 64), (8, 8, 30, 30))
    before = image.pixels.copy()
    image.pixels.flags.writeable = False
    predictor.predict(image, PROMPT)
    assert np.array_equal(image.pixels, before)


def test_an_answer_cut_short_is_not_well_formed(pristine_repository: Path) -> None:
    settings = InferenceSettings(model_repository=pristine_repository, threads=1, max_new_tokens=8)
    image, _ = bright_box((64, 64), (8, 8, 30, 30))
    prediction = open_predictor("tiny", settings).predict(image, PROMPT)
    assert prediction.has_region
    assert not prediction.is_well_formed
    assert prediction.diagnosis is None


def test_a_model_that_gives_nan_makes_no_result(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tiny_package.write_package(tmp_path / "nan", tokenizer, nan=True)
    with pytest.raises(OutputInvalid, match=r"mask_decoder\.onnx gave low_res_logits .* not finite"):
        open_predictor("nan", InferenceSettings(model_repository=tmp_path, threads=1))


@pytest.mark.parametrize("wrong", ["image_encoder", "language_step"])
def test_a_graph_in_the_wrong_place_is_refused(settings: InferenceSettings, wrong: str) -> None:
    folder = settings.model_repository / "tiny"
    (folder / f"{wrong}.onnx").write_bytes((folder / "mask_decoder.onnx").read_bytes())
    tiny_package.write_manifest(folder)
    with pytest.raises(EngineRejected, match=rf"{wrong}\.onnx has no input"):
        open_predictor("tiny", settings)


def test_a_manifest_that_does_not_match_its_graphs_is_refused(settings: InferenceSettings) -> None:
    tiny_package.write_manifest(settings.model_repository / "tiny", replace=("side = 256", "side = 512"))
    with pytest.raises(EngineRejected, match=r"image_encoder\.onnx: input 'pixels' is .*256, 256.*512, 512"):
        open_predictor("tiny", settings)


def test_an_execution_provider_that_is_not_there_is_refused(settings: InferenceSettings) -> None:
    asked = settings.model_copy(update={"execution_providers": ("NoSuchExecutionProvider",)})
    with pytest.raises(EngineRejected, match="NoSuchExecutionProvider"):
        open_predictor("tiny", asked)


@pytest.mark.parametrize(("asked", "step", "others"), [(0, 1, available_cores()), (3, 3, 3)])
def test_a_small_language_step_takes_one_thread_unless_told_otherwise(
    asked: int, step: int, others: int
) -> None:
    open_engine = on_onnx_runtime(InferenceSettings(threads=asked))
    threads = {}
    for name in ("language_step.onnx", "image_encoder.onnx"):
        engine = open_engine(name, tiny_package.image_encoder().SerializeToString())
        assert isinstance(engine, OnnxEngine)
        threads[name] = engine.threads
    assert threads == {"language_step.onnx": step, "image_encoder.onnx": others}
