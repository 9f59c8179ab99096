"""The four graphs of a sim4seg package: names and shapes the predictor needs, and opening them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inference.runtime.engine import FREE, Engine, GraphSpec, TensorSpec, require_graph
from inference.runtime.language_cache import PAST_LENGTHS, PREFIX_LENGTHS, Part, cache_names
from inference.runtime.model_repository import Manifest, ModelPackage

EMBEDDING = (1, 256, 64, 64)  # SAM's image embedding: batch, channels, height, width
STATE = 256  # width of phi, the projection of the language model's hidden states
LOW_RES = 256  # side of the mask decoder's logits: four times that of the image embedding

OpenEngine = Callable[[str, bytes], Engine]


@dataclass(frozen=True)
class Engines:
    """One engine per graph; the field is the file name without `.onnx`."""

    image_encoder: Engine
    language_prefill: Engine
    language_step: Engine
    mask_decoder: Engine


def open_graphs(
    package: ModelPackage, specs: Mapping[str, GraphSpec], open_engine: OpenEngine
) -> dict[str, Engine]:
    """An engine for each graph that `specs` names, without `.onnx`, checked against it.

    Raises
    ------
    PackageTampered, PackageInvalid, EngineRejected
    """
    engines: dict[str, Engine] = {}
    for name, spec in specs.items():
        engines[name] = open_engine(f"{name}.onnx", package.read(f"{name}.onnx"))
        require_graph(engines[name], spec)
    return engines


def graph_specs(manifest: Manifest) -> Mapping[str, GraphSpec]:
    """What each graph must take and give, for the package's square and grid."""
    side, grid = manifest.input.side, manifest.region.grid
    pixels, embedding = floats(1, 3, side, side), floats(*EMBEDDING)
    image_tokens, depth = floats(grid * grid, STATE), manifest.text.layers
    state, logits = floats(1, STATE), floats(1, None)
    return {
        "image_encoder": GraphSpec({"pixels": pixels}, {"image_embedding": embedding}),
        "language_prefill": GraphSpec(
            {"pixels": pixels, "text_ids": TensorSpec("int64", (1, FREE))},
            {
                "logits": logits,
                "image_tokens": image_tokens,
                "state_embedding": state,
                **cache_specs(depth, "prefix"),
            },
        ),
        "language_step": GraphSpec(
            step_inputs(depth),
            {"logits": logits, "state_embedding": state, **cache_specs(depth, "present")},
        ),
        "mask_decoder": GraphSpec(
            {
                "image_embedding": embedding,
                "image_tokens": image_tokens,
                "seg_embedding": state,
                "valid_cells": floats(grid, grid),
            },
            {
                "low_res_logits": floats(1, 1, LOW_RES, LOW_RES),
                "iou_predictions": floats(1, 1),
                "similarity": floats(1, grid, grid),
                "region": TensorSpec(None, (1, grid, grid)),  # 0 and 1, of whatever type
            },
        ),
    }


def floats(*shape: int | None) -> TensorSpec:
    """A float32 tensor of this shape; None is any length."""
    return TensorSpec("float32", shape)


def cache_specs(depth: int, part: Part) -> dict[str, TensorSpec]:
    """Keys and values of `depth` layers, for one image or answer at least."""
    return dict.fromkeys(cache_names(depth, part), floats(1, None, FREE, None))


def step_inputs(depth: int) -> dict[str, TensorSpec]:
    """What a language step takes: each path's token, what was read and said, and how much of both counts."""
    lengths = dict.fromkeys((PREFIX_LENGTHS, PAST_LENGTHS), TensorSpec("int64", (1,)))
    caches = {**cache_specs(depth, "prefix"), **cache_specs(depth, "past")}
    return {"token_ids": TensorSpec("int64", (1, 1)), **lengths, **caches}
