"""How the graphs of a package are opened to serve: images are remembered, and what was spared is counted."""

from dataclasses import dataclass

from inference.runtime.context_store import ContextStore, RememberingEngine
from inference.runtime.engine import Engine
from inference.runtime.model_repository import ModelPackage
from inference.runtime.onnx_engine import OnnxEngine
from inference.runtime.sim4seg_graphs import OpenEngine
from inference.settings import InferenceSettings

MIB = 1 << 20
LANGUAGE_STEP = "language_step.onnx"
# One token of a small model: waking a second thread costs more than it brings (76 steps of sim4seg-s on two
# quiet cores: 71 ms with two threads, 54 ms with one).
SMALL_STEP_BYTES = 32 << 20

# What these graphs give depends on the image, or on image and question, and is asked for again: by the next
# question about a study, by the key frame of a series, by every region of test-time scaling.
REMEMBERED = frozenset({"image_encoder.onnx", "language_prefill.onnx"})


@dataclass(frozen=True)
class Spared:
    """How often a graph ran, and how often what it would say was known."""

    runs: int
    remembered: int
    key_s: float  # seconds spent on telling contents apart


class Serving:
    """Opens the graphs of one package for a node, and says what became of what they were asked."""

    def __init__(self, package: ModelPackage, settings: InferenceSettings) -> None:
        self.store = ContextStore(settings.cache_mb * MIB)
        self._identity = f"{package.digest} {' '.join(settings.execution_providers)}"
        self._open = on_onnx_runtime(settings)
        self._remembering: dict[str, RememberingEngine] = {}

    def open_engine(self, name: str, model: bytes) -> Engine:
        """An engine for the graph `name`.

        Raises
        ------
        EngineRejected
        """
        engine = self._open(name, model)
        if name not in REMEMBERED:
            return engine
        self._remembering[name] = RememberingEngine(engine, self.store, f"{self._identity} {name}")
        return self._remembering[name]

    def spared(self) -> dict[str, Spared]:
        """What each graph that is remembered was spared, by its file name without `.onnx`."""
        return {
            name.removesuffix(".onnx"): Spared(engine.runs, engine.remembered, engine.key_s)
            for name, engine in self._remembering.items()
        }


def on_onnx_runtime(settings: InferenceSettings) -> OpenEngine:
    """Opens graphs on ONNX Runtime as `settings` say; if they leave it, a small step on one thread."""

    def open_engine(name: str, model: bytes) -> Engine:
        is_small_step = name == LANGUAGE_STEP and len(model) < SMALL_STEP_BYTES
        threads = settings.threads or int(is_small_step)
        return OnnxEngine(name, model, execution_providers=settings.execution_providers, threads=threads)

    return open_engine
