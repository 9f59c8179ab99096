"""What a worker's model process runs: predictors, opened once, asked and answering in plain values.

It is imported in the limited child (`limited.py`), never trusted by the worker: what comes back is checked by
`plausible.py`.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.contract import Diagnosis, Image, Prediction, Predictor, Prompt
from inference.errors import InferenceError
from inference.runtime import open_predictor
from inference.settings import InferenceSettings

Plain = dict[str, Any]


def identify(name: str, settings: str) -> Plain:
    """Open the model package `name`; who it is, or why it cannot be opened."""
    try:
        predictor = _predictor(name, settings)
    except InferenceError as error:
        return _problem(error)
    return {"name": predictor.name, "version": predictor.version, "digest": predictor.digest}


def predict(name: str, settings: str, pixels: NDArray[np.uint8], prompt: Plain) -> Plain:
    """`Predictor.predict` of one image."""
    try:
        prediction = _predictor(name, settings).predict(Image(pixels), Prompt(**prompt))
    except InferenceError as error:
        return _problem(error)
    return {"predictions": [to_plain(prediction)]}


def segment(
    name: str, settings: str, pixels: list[NDArray[np.uint8]], prompt: Plain, like: Plain | None
) -> Plain:
    """`Predictor.segment` of some images."""
    images = [Image(each) for each in pixels]
    key = None if like is None else from_plain(like)
    try:
        predictions = _predictor(name, settings).segment(images, Prompt(**prompt), key)
    except InferenceError as error:
        return _problem(error)
    return {"predictions": [to_plain(prediction) for prediction in predictions]}


def spared(name: str, settings: str) -> Plain:
    """What each graph that is remembered was spared: runs, and how often its answer was known."""
    serving = getattr(_predictor(name, settings), "serving", None)
    return {} if serving is None else {graph: vars(each) for graph, each in serving.spared().items()}


@functools.cache
def _predictor(name: str, settings: str) -> Predictor:
    return open_predictor(name, InferenceSettings.model_validate_json(settings))


def _problem(error: InferenceError) -> Plain:
    return {"problem": type(error).__name__, "text": str(error)}


def to_plain(prediction: Prediction) -> Plain:
    """What `wire.py` can carry of a prediction: all of it."""
    diagnosis = prediction.diagnosis
    return {
        **vars(prediction),
        "diagnosis": None if diagnosis is None else vars(diagnosis),
        "mask": np.asarray(prediction.mask),
        "similarity": np.asarray(prediction.similarity),
        "region": np.asarray(prediction.region),
    }


def from_plain(values: Plain) -> Prediction:
    """The prediction again.

    Raises
    ------
    TypeError, AttributeError
        If the values are none of a prediction.
    """
    diagnosis = values["diagnosis"]
    return Prediction(**{**values, "diagnosis": None if diagnosis is None else Diagnosis(**diagnosis)})
