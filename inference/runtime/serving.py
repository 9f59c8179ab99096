"""How the graphs of a package are opened to serve: images are remembered, and what was spared is counted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.errors import EngineRejected
from inference.runtime.batcher import IMAGES, DeviceTurn, MicroBatcher
from inference.runtime.context_store import ContextStore, RememberingEngine
from inference.runtime.engine import Array, Engine, TensorSpec
from inference.runtime.engine_plan import CPU, TENSORRT, EnginePlan
from inference.runtime.installation import require_one_build
from inference.runtime.language_cache import LanguageSteps
from inference.runtime.model_repository import ModelPackage
from inference.runtime.onnx_engine import OnnxEngine, SessionExtras
from inference.runtime.prepared import find_prepared
from inference.runtime.provider_options import provider_chain
from inference.settings import InferenceSettings

MIB = 1 << 20
OpenOnnxEngine = Callable[[str, bytes], OnnxEngine]
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
        """Choose how: prepared engines are looked for, the plain ones need nothing.

        Raises
        ------
        EngineRejected
            If two builds of ONNX Runtime are installed, prepared engines are asked for and there are none, or
            plain ones that would have to be built.
        """
        require_one_build()
        self.store = ContextStore(settings.cache_mb * MIB)
        self._open, runs_on = _chosen(package, settings)
        self._turn = DeviceTurn(self.store.forget)
        self._settings = settings
        self._identity = f"{package.digest} {runs_on}"
        self._remembering: dict[str, RememberingEngine] = {}

    def open_engine(self, name: str, model: bytes) -> Engine:
        """An engine for the graph `name`.

        Raises
        ------
        EngineRejected
        """
        engine: Engine = self._batched(name, model)
        if name not in REMEMBERED:
            return engine
        self._remembering[name] = RememberingEngine(engine, self.store, f"{self._identity} {name}")
        return self._remembering[name]

    def _batched(self, name: str, model: bytes) -> MicroBatcher:
        engine = self._open(name, model)
        settings = self._settings
        is_on_device = engine.execution_providers[0] != CPU
        is_step = name == LANGUAGE_STEP
        batcher = MicroBatcher(
            engine,
            self._turn,
            max_batch=settings.max_answers if is_step else settings.max_batch,
            # Nobody waits for a step: whoever asks while one runs goes into the next.
            delay_s=0.0 if is_step else settings.max_delay_ms / 1000,
            # Opened now: where the device has no memory left is no time to build an engine.
            fallback=on_processor(name, model, settings) if is_on_device else None,
            joining=LanguageSteps() if is_step else IMAGES,
        )
        if batcher.largest > 1:
            batcher.warm_up(blank_feeds(engine.inputs))
        return batcher

    def spared(self) -> dict[str, Spared]:
        """What each graph that is remembered was spared, by its file name without `.onnx`."""
        return {
            name.removesuffix(".onnx"): Spared(engine.runs, engine.remembered, engine.key_s)
            for name, engine in self._remembering.items()
        }


def _chosen(package: ModelPackage, settings: InferenceSettings) -> tuple[OpenOnnxEngine, str]:
    """How the graphs of `package` are opened, and in words."""
    if settings.engines == "plain":
        if TENSORRT in settings.execution_providers:
            raise EngineRejected(
                f"{package.manifest.model.name}: TensorRT engines are built before the node starts, never in "
                'it: set inference.engines = "prepared" and run `dicom-node prepare`.'
            )
        return on_onnx_runtime(settings), " ".join(settings.execution_providers)
    prepared = find_prepared(package, settings)
    plan = prepared.evidence.winner
    return on_plan(settings, plan, prepared.graph, prepared.built), plan.name


def on_onnx_runtime(settings: InferenceSettings) -> OpenOnnxEngine:
    """Opens graphs on ONNX Runtime as `settings` say; if they leave it, a small step on one thread.

    The plain engine: nothing is kept from one start to the next.
    """

    def open_engine(name: str, model: bytes) -> OnnxEngine:
        threads = threads_for(name, model, settings.threads)
        return OnnxEngine(name, model, execution_providers=settings.execution_providers, threads=threads)

    return open_engine


def on_plan(
    settings: InferenceSettings, plan: EnginePlan, saved: Callable[[str], bytes], built: Path
) -> OpenOnnxEngine:
    """Opens graphs as `plan` says; `saved` gives optimised graphs, in `built` TensorRT keeps its engines."""
    chain = provider_chain(plan, built)

    def open_engine(name: str, model: bytes) -> OnnxEngine:
        return OnnxEngine(
            name,
            saved(name) if plan.is_saved else model,
            execution_providers=[provider for provider, _ in chain],
            threads=threads_for(name, model, plan.threads or settings.threads),
            extras=SessionExtras(
                is_spinning=plan.is_spinning,
                is_optimised=plan.is_saved,
                options=dict(chain),
                bound_to="" if plan.provider == CPU else "cuda",
                is_graph_captured=plan.is_graph_captured,
            ),
        )

    return open_engine


def on_processor(name: str, model: bytes, settings: InferenceSettings) -> OnnxEngine:
    """The engine that is left where a device has no memory left."""
    return OnnxEngine(name, model, threads=threads_for(name, model, settings.threads))


def blank_feeds(inputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """Zeros for one image; what varies is 1 long."""
    return {
        name: np.zeros([length or 1 for length in spec.shape], spec.dtype) for name, spec in inputs.items()
    }


def threads_for(name: str, model: bytes, asked: int) -> int:
    """Threads of one engine; 0 is every core."""
    is_small_step = name == LANGUAGE_STEP and len(model) < SMALL_STEP_BYTES
    return asked or int(is_small_step)
