"""What a worker's model process runs: predictors, opened once, asked and answering in plain values.

It is imported in the limited child (`limited.py`), never trusted by the worker: what comes back is checked by
`plausible.py`.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.contract import Diagnosis, Image, Prediction, Predictor, Prompt
from inference.errors import InferenceError
from inference.runtime import open_predictor
from inference.runtime.call_queue import URGENCY, Urgency
from inference.settings import InferenceSettings

Plain = dict[str, Any]


def identify(name: str, settings: str) -> Plain:
    """Open the model package `name`; who it is, or why it cannot be opened."""
    try:
        predictor = _predictor(name, settings)
    except InferenceError as error:
        return _problem(error)
    return {"name": predictor.name, "version": predictor.version, "digest": predictor.digest}


def answer(
    name: str, settings: str, questions: Sequence[tuple[str, Sequence[Any], float]]
) -> list[dict[str, Any]]:
    """What each of FUNCTIONS says to its arguments, in order; several at once, the urgent first.

    A question is the name of a function, its arguments, and a priority.
    """
    predictor = _predictor(name, settings)
    if len(questions) == 1:
        return [_answer(predictor, *questions[0])]
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda question: _answer(predictor, *question), questions))


def _answer(predictor: Predictor, function: str, arguments: Sequence[Any], priority: float) -> Plain:
    token = URGENCY.set(Urgency(priority))
    try:
        return FUNCTIONS[function](predictor, *arguments)
    except InferenceError as error:
        return _problem(error)
    finally:
        URGENCY.reset(token)


def _predict(predictor: Predictor, pixels: NDArray[np.uint8], prompt: Plain) -> Plain:
    return {"predictions": [to_plain(predictor.predict(Image(pixels), Prompt(**prompt)))]}


def _segment(
    predictor: Predictor, pixels: list[NDArray[np.uint8]], prompt: Plain, like: Plain | None
) -> Plain:
    key = None if like is None else from_plain(like)
    predictions = predictor.segment([Image(each) for each in pixels], Prompt(**prompt), key)
    return {"predictions": [to_plain(prediction) for prediction in predictions]}


def _spared(predictor: Predictor) -> Plain:
    """Of each graph that is remembered: runs, and how often its answer was known."""
    serving = getattr(predictor, "serving", None)
    return {} if serving is None else {graph: vars(each) for graph, each in serving.spared().items()}


FUNCTIONS: dict[str, Callable[..., Plain]] = {"predict": _predict, "segment": _segment, "spared": _spared}


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
