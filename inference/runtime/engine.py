"""Engine (Protocol): inputs, outputs, warm_up, run. Names the shapes it accepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.errors import EngineRejected, OutputInvalid

Array = NDArray[Any]
Tensors = Mapping[str, Array]


FREE = -1  # in a required input: an axis whose length varies from call to call


@dataclass(frozen=True)
class TensorSpec:
    """dtype (numpy's name) and shape of one input or output; None is "any", FREE "must be able to vary"."""

    dtype: str | None
    shape: tuple[int | None, ...]

    def is_met_by(self, declared: "TensorSpec") -> bool:
        """Whether a graph that declares `declared` does what this requirement asks."""
        if self.dtype not in (None, declared.dtype) or len(self.shape) != len(declared.shape):
            return False
        return all(
            need is None or have is None or need == have
            for need, have in zip(self.shape, declared.shape, strict=True)
        )

    def __str__(self) -> str:
        """E.g. float32 (1, 3, ?, ?)."""
        lengths = ", ".join("?" if length in (None, FREE) else str(length) for length in self.shape)
        return f"{self.dtype or 'any type'} ({lengths})"


@dataclass(frozen=True)
class GraphSpec:
    """What a predictor needs of one graph."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


class Engine(Protocol):
    """Something that runs tensors."""

    @property
    def name(self) -> str:
        """The graph's file name, for messages."""
        ...

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What `run` takes."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What `run` gives."""
        ...

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """Every output by name, for one input of each name."""
        ...

    def warm_up(self, feeds: Tensors) -> None:
        """Run once so that the first real call is not the slow one."""
        ...


class AroundEngine:
    """What an engine around another has of it: name, inputs and outputs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        """As the engine's."""
        return self._engine.name

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """As the engine's."""
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """As the engine's."""
        return self._engine.outputs


def require_graph(engine: Engine, required: GraphSpec) -> None:
    """Refuse an engine whose inputs or outputs are not those the predictor needs.

    Raises
    ------
    EngineRejected
    """
    _require_tensors(engine.name, "input", engine.inputs, required.inputs)
    _require_tensors(engine.name, "output", engine.outputs, required.outputs)
    unfed = sorted(set(engine.inputs) - set(required.inputs))
    if unfed:
        raise EngineRejected(
            f"{engine.name} asks for inputs nobody gives: {', '.join(unfed)}. Export it again."
        )


def _require_tensors(
    name: str, kind: str, declared: Mapping[str, TensorSpec], required: Mapping[str, TensorSpec]
) -> None:
    for tensor, spec in required.items():
        found = declared.get(tensor)
        if found is None:
            have = ", ".join(sorted(declared)) or "none"
            raise EngineRejected(f"{name} has no {kind} {tensor!r}; it has {have}. Export it again.")
        if not spec.is_met_by(found):
            raise EngineRejected(f"{name}: {kind} {tensor!r} is {found}, needed is {spec}. Export it again.")


def require_output(engine_name: str, name: str, value: Array, shape: tuple[int, ...]) -> Array:
    """Return `value` if it has `shape` and, being a float, only finite numbers.

    Raises
    ------
    OutputInvalid
    """
    if value.shape != shape:
        raise OutputInvalid(
            f"{engine_name} gave {name} of shape {value.shape}, not {shape}; the package is broken."
        )
    if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
        raise OutputInvalid(
            f"{engine_name} gave {name} with values that are not finite; no result is made. "
            "Try the CPU execution provider, and report the model package."
        )
    return value
