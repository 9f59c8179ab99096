"""The predictors of this process: each model package is verified and opened once."""

import logging

from dicom_node import readiness
from dicom_node.settings import NodeSettings
from inference.contract import Predictor
from inference.errors import InferenceError
from inference.runtime import open_predictor

logger = logging.getLogger(__name__)


class Predictors:
    """Opened predictors by name; what cannot be opened makes the node unready until it can."""

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
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Predictor:
        try:
            predictor = open_predictor(name, self._settings.inference)
        except InferenceError as error:
            readiness.report(self._settings.home, f"model-{name}", f"model {name}: {error}")
            raise
        readiness.report(self._settings.home, f"model-{name}", None)
        extra = {"model": predictor.name, "model_version": predictor.version, "digest": predictor.digest}
        logger.info("model opened", extra=extra)
        return predictor
