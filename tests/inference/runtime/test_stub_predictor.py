from pathlib import Path

import numpy as np
import pytest

from inference.contract import Image, Prompt
from inference.errors import DeviceOutOfMemory, InputRejected, PackageInvalid
from inference.runtime import open_predictor
from inference.runtime.stub_predictor import StubPredictor
from inference.settings import InferenceSettings
from tests.stub_engine import write_stub_package

IMAGE = Image(np.tile(np.arange(40, dtype=np.uint8)[:, None, None], (1, 30, 3)))


def opened(tmp_path: Path, *, test_mode: bool = True) -> StubPredictor:
    settings = InferenceSettings(model_repository=write_stub_package(tmp_path), test_mode=test_mode)
    predictor = open_predictor("sim4seg-s", settings)
    assert isinstance(predictor, StubPredictor)
    return predictor


def test_a_stub_is_refused_outside_of_tests(tmp_path: Path) -> None:
    with pytest.raises(PackageInvalid, match="test_mode"):
        opened(tmp_path, test_mode=False)


def test_any_other_question_is_answered_plainly(tmp_path: Path) -> None:
    stub = opened(tmp_path)
    first, second = stub.segment([IMAGE, IMAGE], Prompt("Is there a lesion?"), None)
    assert (first.mask == second.mask).all()
    assert first.mask[:9].all()
    assert first.diagnosis is not None
    assert first.diagnosis.label == "benign"


@pytest.mark.parametrize(
    "query", ["stub fly", "stub sleep tonight", "stubborn", "stub sleep 1; crash", "stub"]
)
def test_the_vocabulary_is_closed(tmp_path: Path, query: str) -> None:
    with pytest.raises(InputRejected, match="fail first"):
        opened(tmp_path).predict(IMAGE, Prompt(query))


def test_it_sleeps_and_answers(tmp_path: Path) -> None:
    assert opened(tmp_path).predict(IMAGE, Prompt("stub sleep 0.01")).has_region


def test_the_first_time_fails_for_each_image(tmp_path: Path) -> None:
    stub = opened(tmp_path)
    for image in (IMAGE, Image(IMAGE.pixels[::-1].copy())):
        with pytest.raises(DeviceOutOfMemory):
            stub.predict(image, Prompt("stub fail first"))
        assert stub.predict(image, Prompt("stub fail first")).has_region


def test_it_crashes_and_talks_nonsense(tmp_path: Path) -> None:
    stub = opened(tmp_path)
    with pytest.raises(RuntimeError):
        stub.predict(IMAGE, Prompt("stub crash"))
    assert np.isnan(stub.predict(IMAGE, Prompt("stub nan")).predicted_iou)
    assert stub.predict(IMAGE, Prompt("stub wrong shape")).mask.shape == (41, 30)
    nonsense = stub.predict(IMAGE, Prompt("stub nonsense"))
    assert nonsense.diagnosis is not None
    assert nonsense.diagnosis.confidence > 1
