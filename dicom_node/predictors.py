"""The predictors of this process: each model package is verified and opened once; a worker's in children."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from dicom_node import readiness
from dicom_node.limited import MIB
from dicom_node.model_process import ModelAttempt, ModelProcess, ModelStopped
from dicom_node.plausible import require_plausible
from dicom_node.settings import NodeSettings
from inference.contract import Image, Prediction, Predictor, Prompt
from inference.errors import InferenceError
from inference.runtime import open_predictor

logger = logging.getLogger(__name__)


class Predictors:
    """Predictors in this process, by name; what they say is checked as in a worker."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._opened: dict[str, Predictor] = {}

    def open(self, name: str) -> Predictor:
        """The predictor of the model package `name`.

        Raises
        ------
        InferenceError
            If there is no such package, or its files are not the ones it was made with.
        """
        if name not in self._opened:
            self._opened[name] = Checked(open_predictor(name, self._settings.inference))
        return self._opened[name]


class Checked:
    """A Predictor that refuses what cannot be meant: see `plausible.py`."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.name, self.version, self.digest = predictor.name, predictor.version, predictor.digest

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """As `Predictor.predict`."""
        return require_plausible(self._predictor.predict(image, prompt), image)

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """As `Predictor.segment`."""
        predictions = self._predictor.segment(images, prompt, like)
        return [require_plausible(each, image) for each, image in zip(predictions, images, strict=True)]


class WorkerModels:
    """The models of a worker, each in a process of its own; without one of them the node is not ready."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._processes: OrderedDict[str, ModelProcess] = OrderedDict()  # used last stands last
        self._attempts: dict[str, list[ModelAttempt]] = {}
        self._lock = threading.Lock()

    def open(self, name: str, job_id: str = "", priority: float = 0.0) -> ModelAttempt:
        """The predictor of the model package `name` for one attempt, its process started again if it ended.

        Raises
        ------
        InferenceError
            If there is no such package, or its files are not the ones it was made with.
        ModelStopped
            If its process ended while it was opened.
        """
        process = self._process(name)
        try:
            is_new = process.open()
        except (InferenceError, ModelStopped) as error:
            readiness.report(self._settings.home, f"model-{name}", f"model {name}: {error}")
            raise
        readiness.report(self._settings.home, f"model-{name}", None)
        if is_new:
            extra = {"model": process.name, "model_version": process.version, "digest": process.digest}
            logger.info("model opened", extra=extra)
            self._make_room(name)
        attempt = ModelAttempt(process, left_s=self._settings.jobs.time_limit_s, priority=priority)
        self._attempts.setdefault(job_id, []).append(attempt)
        return attempt

    def _process(self, name: str) -> ModelProcess:
        jobs = self._settings.jobs
        with self._lock:
            if name not in self._processes:
                self._processes[name] = ModelProcess(
                    name, self._settings.inference, jobs.model_memory_mb * MIB, at_once=jobs.at_once
                )
            self._processes.move_to_end(name)
            return self._processes[name]

    def _make_room(self, name: str) -> None:
        """End idle processes, the one used longest ago first, until what all hold is what they may hold."""
        most = self._settings.jobs.all_models_memory_mb * MIB
        with self._lock:
            held = {each: process.footprint_bytes for each, process in self._processes.items()}
            for each in surplus(held, most, keep=name):
                if self._processes[each].is_idle:
                    self._processes[each].close()
                    extra = {"model": each, "footprint_mb": held[each] // MIB}
                    logger.info("model closed to make room", extra=extra)

    def stop(self, job_id: str) -> None:
        """End what the models do for a job, from another thread than the one that waits for them."""
        for attempt in self._attempts.get(job_id, []):
            attempt.stop()

    def stop_all(self) -> None:
        """End whatever the models do now."""
        for attempts in list(self._attempts.values()):
            for attempt in attempts:
                attempt.stop()

    def forget(self, job_id: str) -> None:
        """The attempt at a job is over."""
        self._attempts.pop(job_id, None)

    def close(self) -> None:
        """End the processes of the models."""
        for process in self._processes.values():
            process.close()


def surplus(footprints: Mapping[str, int], most: int, *, keep: str) -> list[str]:
    """Which models must go, the first given first, so that the rest fits `most` bytes; 0 is any."""
    gone, total = [], sum(footprints.values())
    for name, footprint in footprints.items():
        if most and total > most and name != keep and footprint:
            gone.append(name)
            total -= footprint
    return gone
