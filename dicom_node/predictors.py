"""The predictors of this process: each model package is verified and opened once; a worker's in children."""

import logging
from collections.abc import Sequence

from dicom_node import readiness
from dicom_node.limited import MIB
from dicom_node.model_process import ModelProcess, ModelStopped
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
        self._processes: dict[str, ModelProcess] = {}

    def open(self, name: str) -> ModelProcess:
        """The predictor of the model package `name` for one attempt, its process started again if it ended.

        Raises
        ------
        InferenceError
            If there is no such package, or its files are not the ones it was made with.
        ModelStopped
            If its process ended while it was opened.
        """
        if name not in self._processes:
            resident_bytes = self._settings.jobs.model_memory_mb * MIB
            self._processes[name] = ModelProcess(name, self._settings.inference, resident_bytes)
        process = self._processes[name]
        try:
            is_new = process.open()
        except (InferenceError, ModelStopped) as error:
            readiness.report(self._settings.home, f"model-{name}", f"model {name}: {error}")
            raise
        readiness.report(self._settings.home, f"model-{name}", None)
        if is_new:
            extra = {"model": process.name, "model_version": process.version, "digest": process.digest}
            logger.info("model opened", extra=extra)
        process.left_s = self._settings.jobs.time_limit_s
        return process

    def stop(self) -> None:
        """End what the models do now, from another thread than the one that waits for them."""
        for process in list(self._processes.values()):
            process.stop()

    def close(self) -> None:
        """End the processes of the models."""
        for process in self._processes.values():
            process.close()
