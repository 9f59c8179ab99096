"""PackagedPredictor: what the predictors share - a package, its graphs opened and run once, its images."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from inference.contract import Image, Prediction, Prompt
from inference.errors import UnsuitableImage
from inference.preprocess import ResizeLongestSide, fit
from inference.runtime.acceptance import check_pixels, unsuitable_prediction
from inference.runtime.engine import Engine, GraphSpec
from inference.runtime.generate import Floats
from inference.runtime.model_repository import Manifest, ModelPackage
from inference.runtime.serving import Serving, on_onnx_runtime
from inference.runtime.sim4seg_graphs import OpenEngine, open_graphs
from inference.settings import InferenceSettings

Clock = Callable[[], float]


class PackagedPredictor(ABC):
    """A model package, opened: who it is, its graphs as engines, and how it takes an image."""

    def __init__(
        self,
        package: ModelPackage,
        settings: InferenceSettings,
        *,
        clock: Clock = time.perf_counter,
        open_engine: OpenEngine | None = None,
    ) -> None:
        """Load the graphs of `package`, check that they fit together, and run each once.

        Raises
        ------
        PackageTampered, PackageInvalid, EngineRejected, OutputInvalid
        """
        self.manifest = package.manifest
        self.name, self.version = self.manifest.model.name, self.manifest.model.version
        self.digest = package.digest
        self.serving: Serving | None = None
        self._clock = clock
        self._read_words(package.read(self.manifest.text.tokenizer), settings)
        specs = self._graph_specs(self.manifest)
        engines = open_graphs(package, specs, open_engine or on_onnx_runtime(settings))
        self.image_encoder = engines.get("image_encoder")  # None where the graph is not one of its own
        self._take_engines(engines)
        self.warm_up()

    @classmethod
    def served(cls, package: ModelPackage, settings: InferenceSettings) -> Self:
        """Open `package` as a node does: see `serving.py`. Raises as the constructor."""
        serving = Serving(package, settings)
        predictor = cls(package, settings, open_engine=serving.open_engine)
        predictor.serving = serving
        return predictor

    @abstractmethod
    def _read_words(self, tokenizer_json: bytes, settings: InferenceSettings) -> None:
        """Take the package's tokenizer, and what `settings` say of answers."""

    @abstractmethod
    def _graph_specs(self, manifest: Manifest) -> Mapping[str, GraphSpec]:
        """What each graph of this family must take and give."""

    @abstractmethod
    def _take_engines(self, engines: Mapping[str, Engine]) -> None:
        """Keep the engines, by graph without `.onnx`."""

    @abstractmethod
    def _run_once(self, black: Image) -> None:
        """Run every graph on a black image."""

    @abstractmethod
    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """As `Predictor.predict`."""

    def warm_up(self) -> None:
        """Run every graph once on a black image: the first real image is not the slow one, misfits show now.

        Raises
        ------
        OutputInvalid
        """
        side = self.manifest.input.side
        self._run_once(Image(np.zeros((side, side, 3), np.uint8)))

    def fit(self, image: Image) -> tuple[ResizeLongestSide, Floats]:
        """Check an image; give its frame and the network input (1, 3, side, side) float32.

        Raises
        ------
        InputRejected
        """
        check_pixels(image)
        square = self.manifest.input
        return fit(image.pixels, square.side, mean=square.mean, std=square.std)

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:  # noqa: ARG002 - each image is answered for itself
        """One prediction per image of a series; an unsuitable image has an empty one that says why."""
        return segment_each(self, images, prompt)


class _Asked(Protocol):
    """A predictor that is asked about one image at a time."""

    manifest: Manifest

    def predict(self, image: Image, prompt: Prompt) -> Prediction: ...


def segment_each(predictor: _Asked, images: Sequence[Image], prompt: Prompt) -> list[Prediction]:
    """One prediction per image; an unsuitable image has an empty one that says why."""
    predictions = []
    for image in images:
        try:
            predictions.append(predictor.predict(image, prompt))
        except UnsuitableImage as error:
            predictions.append(unsuitable_prediction(image, str(error), predictor.manifest.region.grid))
    return predictions


@dataclass
class Stopwatch:
    """Wall seconds per stage."""

    clock: Clock
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside under `name`."""
        started = self.clock()
        yield
        self.seconds[name] = self.clock() - started
