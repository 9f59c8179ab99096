"""A model in a process of its own: what it breaks, holds or wastes costs that process, not the worker.

The process lives as long as the worker: what it remembers of images serves the next question. Several jobs
may ask it at once; what ends it while it answers several is found by asking again one by one, so that the
others lose nothing.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dicom_node import model_child
from dicom_node.errors import ChildFailed
from dicom_node.limited import MIB, LimitedChild, Limits, resident_bytes
from dicom_node.plausible import CODE, require_plausible
from inference import errors
from inference.contract import Image, Prediction, Prompt
from inference.errors import InferenceError, OutputInvalid
from inference.runtime.call_queue import CallQueue, Urgency
from inference.settings import InferenceSettings

PRELOAD: Final = ("dicom_node.model_child",)
OPENING_S: Final = 600.0  # longest time to open a model: graphs are optimised
MAX_RESULT_BYTES: Final = 1024 * MIB

Plain = dict[str, Any]


class ModelStopped(Exception):
    """The process of the model was ended: too much memory or time, a crash, or an order to stop."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """One question to the process: a function of `model_child`, what it is given, and for whom."""

    function: str
    arguments: tuple[object, ...]
    attempt: "ModelAttempt"


class ModelProcess:
    """Holds the limited child of one model; a child that ended is replaced when it is needed."""

    def __init__(
        self, name: str, settings: InferenceSettings, resident_bytes: int, *, at_once: int = 1
    ) -> None:
        self._asked_for = name
        self._settings = settings
        self._resident_bytes = resident_bytes
        self._child: LimitedChild | None = None
        self._opening = threading.RLock()
        self._in_flight: tuple[_Asked, ...] = ()
        self._calls = CallQueue[_Asked, Any](self._run, most=at_once)
        self.name = self.version = self.digest = ""

    def open(self) -> bool:
        """Have the model loaded, and learn who it is; False when it was loaded already.

        Raises
        ------
        InferenceError
            If there is no such package, or it is not what it was.
        ModelStopped
        """
        with self._opening:
            if self._in_flight or (self._child is not None and self._child.is_alive):
                return False
            self._start()
            return True

    def _start(self) -> None:
        self.close()
        threads = self._settings.threads or len(os.sched_getaffinity(0))
        self._child = LimitedChild(PRELOAD, may_write=True, threads=threads)
        try:
            who = _checked(self._call(model_child.identify, (), OPENING_S))
        except InferenceError:
            self.close()
            raise
        self.name, self.version, self.digest = who["name"], who["version"], who["digest"]

    @property
    def footprint_bytes(self) -> int:
        """Memory that the process holds now; 0 when there is none."""
        return resident_bytes(self._child.pid) if self._child is not None and self._child.is_alive else 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for it."""
        return not self._in_flight

    def ask(self, asked: _Asked, urgency: Urgency) -> Any:
        """What the child answers, when it is its turn; raises ModelStopped, InferenceError."""
        return self._calls.ask(asked, urgency)

    def interrupt(self, attempt: "ModelAttempt | None" = None) -> None:
        """End the process if it works for `attempt`, or anyhow; from another thread than those that wait."""
        is_meant = attempt is None or any(each.attempt is attempt for each in self._in_flight)
        if is_meant and self._child is not None:
            self._child.interrupt()

    def close(self) -> None:
        """End the model's process, if there is one."""
        if self._child is not None:
            self._child.kill()

    def _run(self, asked: Sequence[_Asked]) -> list[Any]:
        """Each answer, or why there is none; who ended the process is found by asking each alone."""
        if len(asked) > 1:
            try:
                return self._answers(asked)
            except (ModelStopped, InferenceError):
                pass
        return [self._alone(each) for each in asked]

    def _alone(self, asked: _Asked) -> Any:
        try:
            (answer,) = self._answers([asked])
        except (ModelStopped, InferenceError) as error:
            return error
        return answer

    def _answers(self, asked: Sequence[_Asked]) -> list[Any]:
        if any(each.attempt.is_stopped for each in asked):
            raise ModelStopped("the model was told to stop")
        self.open()
        questions = [(each.function, each.arguments, each.attempt.priority) for each in asked]
        started, self._in_flight = time.monotonic(), tuple(asked)
        try:
            answers = self._call(model_child.answer, (questions,), min(each.attempt.left_s for each in asked))
        finally:
            self._in_flight = ()
            for each in asked:
                each.attempt.left_s -= time.monotonic() - started
        if not isinstance(answers, list) or len(answers) != len(asked):
            raise OutputInvalid(f"{CODE}: the model's process gave no answers; nothing was published.")
        return [_problem(each) or each for each in answers]

    def _call(self, function: Callable[..., Any], arguments: tuple[object, ...], wall_s: float) -> Any:
        if self._child is None:
            raise ModelStopped("the model is not open")
        limits = Limits(
            memory_bytes=None,  # drivers of devices reserve more addresses than any limit would allow
            cpu_s=None,
            wall_s=max(min(wall_s, threading.TIMEOUT_MAX), 0.0),
            result_bytes=MAX_RESULT_BYTES,
            resident_bytes=self._resident_bytes,
        )
        settings = self._settings.model_dump_json()
        try:
            return self._child.call(function, (self._asked_for, settings, *arguments), limits)
        except ChildFailed as error:
            self.close()  # what it left behind in the process is not known
            raise ModelStopped(f"the model's process: {error}") from error


class ModelAttempt:
    """A Predictor for one attempt at a job: its time, its priority, and whether it was told to stop."""

    def __init__(self, process: ModelProcess, *, left_s: float = float("inf"), priority: float = 0.0) -> None:
        self._process = process
        self.left_s = left_s  # how long the model may still work for this attempt
        self.priority = priority
        self.is_stopped = False
        self.name, self.version, self.digest = process.name, process.version, process.digest

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """As `Predictor.predict`, within the limits of the attempt; raises ModelStopped too."""
        (prediction,) = self._predictions([image], "predict", image.pixels, vars(prompt))
        return prediction

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """As `Predictor.segment`, within the limits of the attempt; raises ModelStopped too."""
        key = None if like is None else model_child.to_plain(like)
        return self._predictions(images, "segment", [image.pixels for image in images], vars(prompt), key)

    def spared(self) -> dict[str, dict[str, float]]:
        """How often each graph that is remembered ran, and how often not; raises ModelStopped too."""
        spared: dict[str, dict[str, float]] = self._ask("spared")
        return spared

    def stop(self) -> None:
        """Let this attempt end, from another thread than its own; what others ask is asked again."""
        self.is_stopped = True
        self._process.interrupt(self)

    def _ask(self, function: str, *arguments: object) -> Any:
        urgency = Urgency(self.priority, time.monotonic() + self.left_s)
        return self._process.ask(_Asked(function, arguments, self), urgency)

    def _predictions(self, images: Sequence[Image], function: str, *arguments: object) -> list[Prediction]:
        answer = self._ask(function, *arguments)
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


def _checked(answer: Plain) -> Plain:
    problem = _problem(answer)
    if problem is not None:
        raise problem
    return answer


def _problem(answer: Any) -> InferenceError | None:
    """The error that an answer of the child tells; None where it is none."""
    if not isinstance(answer, dict) or "problem" not in answer:
        return None
    kind = getattr(errors, str(answer["problem"]), InferenceError)
    is_ours = isinstance(kind, type) and issubclass(kind, InferenceError)
    return (kind if is_ours else InferenceError)(answer["text"])
