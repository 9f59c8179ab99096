"""A model in a process of its own: what it breaks, holds or wastes costs that process, not the worker."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from dicom_node import model_child
from dicom_node.errors import ChildFailed
from dicom_node.limited import MIB, LimitedChild, Limits
from dicom_node.plausible import CODE, require_plausible
from inference import errors
from inference.contract import Image, Prediction, Prompt
from inference.errors import InferenceError, OutputInvalid
from inference.settings import InferenceSettings

PRELOAD: Final = ("dicom_node.model_child",)
OPENING_S: Final = 600.0  # longest time to open a model: engines may be built
MAX_RESULT_BYTES: Final = 1024 * MIB


class ModelStopped(Exception):
    """The process of the model was ended: too much memory or time, a crash, or an order to stop."""


class ModelProcess:
    """A Predictor whose model lives in a limited child; a child that ended is replaced at the next `open`."""

    def __init__(self, name: str, settings: InferenceSettings, resident_bytes: int) -> None:
        self._asked_for = name
        self._settings = settings
        self._resident_bytes = resident_bytes
        self._child: LimitedChild | None = None
        self.name = self.version = self.digest = ""
        self.left_s = float("inf")  # how long the model may still work for this attempt

    def open(self) -> bool:
        """Have the model loaded, and learn who it is; False when it was loaded already.

        Raises
        ------
        InferenceError
            If there is no such package, or it is not what it was.
        ModelStopped
        """
        if self._child is not None and self._child.is_alive:
            return False
        self.close()
        threads = self._settings.threads or len(os.sched_getaffinity(0))
        self._child = LimitedChild(PRELOAD, may_write=True, threads=threads)
        try:
            who = self._ask(model_child.identify, wall_s=OPENING_S)
        except InferenceError:
            self.close()
            raise
        self.name, self.version, self.digest = who["name"], who["version"], who["digest"]
        return True

    def stop(self) -> None:
        """End the model's process, from another thread than the one that waits for its answer."""
        if self._child is not None:
            self._child.interrupt()

    def close(self) -> None:
        """End the model's process, if there is one."""
        if self._child is not None:
            self._child.kill()

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """As `Predictor.predict`, within the limits of the attempt; raises ModelStopped too."""
        answer = self._ask(model_child.predict, image.pixels, vars(prompt))
        (prediction,) = self._predictions(answer, [image])
        return prediction

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """As `Predictor.segment`, within the limits of the attempt; raises ModelStopped too."""
        key = None if like is None else model_child.to_plain(like)
        answer = self._ask(model_child.segment, [image.pixels for image in images], vars(prompt), key)
        return self._predictions(answer, images)

    def spared(self) -> dict[str, dict[str, float]]:
        """How often each graph that is remembered ran, and how often not; raises ModelStopped too."""
        answer: dict[str, dict[str, float]] = self._ask(model_child.spared)
        return answer

    def _ask(self, function: Callable[..., Any], *arguments: object, wall_s: float | None = None) -> Any:
        if self._child is None:
            raise ModelStopped("the model is not open")
        started = time.monotonic()
        limits = Limits(
            memory_bytes=None,  # drivers of devices reserve more addresses than any limit would allow
            cpu_s=None,
            wall_s=max(min(self.left_s if wall_s is None else wall_s, threading.TIMEOUT_MAX), 0.0),
            result_bytes=MAX_RESULT_BYTES,
            resident_bytes=self._resident_bytes,
        )
        settings = self._settings.model_dump_json()
        try:
            answer = self._child.call(function, (self._asked_for, settings, *arguments), limits)
        except ChildFailed as error:
            self.close()  # what it left behind in the process is not known
            raise ModelStopped(f"the model's process: {error}") from error
        if wall_s is None:
            self.left_s -= time.monotonic() - started
        if "problem" in answer:
            raise _problem(answer)
        return answer

    def _predictions(self, answer: Any, images: Sequence[Image]) -> list[Prediction]:
        try:
            predictions = [model_child.from_plain(values) for values in answer["predictions"]]
        except (TypeError, LookupError, AttributeError) as error:
            raise OutputInvalid(f"{CODE}: the answer is no prediction; nothing was published.") from error
        if len(predictions) != len(images):
            raise OutputInvalid(f"{CODE}: {len(predictions)} predictions for {len(images)} images.")
        return [
            require_plausible(prediction, image)
            for prediction, image in zip(predictions, images, strict=True)
        ]


def _problem(answer: dict[str, str]) -> InferenceError:
    kind = getattr(errors, answer["problem"], InferenceError)
    is_ours = isinstance(kind, type) and issubclass(kind, InferenceError)
    return (kind if is_ours else InferenceError)(answer["text"])
