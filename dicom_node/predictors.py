"""The predictors of this process: each model package is verified and opened once."""

import logging

from dicom_node import readiness
from dicom_node.settings import NodeSettings
from inference.contract import Predictor
from inference.errors import InferenceError
from inference.runtime import open_predictor

logger = logging.getLogger(__name__)


class Predictors:
    """Opened predictors by name; in a worker, one that cannot be opened makes the node unready."""

    def __init__(self, settings: NodeSettings, *, is_worker: bool = False) -> None:
        self._settings = settings
        self._is_worker = is_worker
        self._opened: dict[str, Predictor] = {}

    def open(self, name: str) -> Predictor:
        """The predictor of the model package `name`.

        Raises
        ------
        InferenceError
            If there is no such package, or its files are not the ones it was made with.
        """
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Predictor:
        try:
            predictor = open_predictor(name, self._settings.inference)
        except InferenceError as error:
            self._report(name, f"model {name}: {error}")
            raise
        self._report(name, None)
        extra = {"model": predictor.name, "model_version": predictor.version, "digest": predictor.digest}
        logger.info("model opened", extra=extra)
        return predictor

    def _report(self, name: str, problem: str | None) -> None:
        if self._is_worker:
            readiness.report(self._settings.home, f"model-{name}", problem)
