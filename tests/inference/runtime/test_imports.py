"""What running loads: never torch, and no engine before a predictor is opened."""

import pytest

from tests.inference.test_contract import loaded_by

TRAINING = {"torch", "transformers", "segment_anything", "safetensors", "onnx"}


@pytest.mark.parametrize(
    "statement",
    [
        "import inference.runtime",
        "import inference.runtime.predictors, inference.runtime.benchmark",
        "import dicom_node.pipeline, dicom_node.tasks, dicom_node.run_folder",
    ],
)
def test_serving_loads_no_training_library(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "inference" in loaded
    assert not loaded & TRAINING


def test_asking_which_models_there_are_loads_no_engine() -> None:
    statement = (
        "from inference.runtime import list_models\n"
        "from inference.settings import InferenceSettings\n"
        "list_models(InferenceSettings())"
    )
    assert not loaded_by(statement) & {"onnxruntime", "tokenizers"}


def test_the_check_finds_an_engine_where_there_is_one() -> None:
    assert "onnxruntime" in loaded_by("import inference.runtime.predictors")
