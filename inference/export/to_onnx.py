"""PyTorch -> ONNX; declares names, dtypes and dynamic axes per model."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference.export.graphs import (
    ExportSpec,
    ImageEncoderGraph,
    LanguagePrefillGraph,
    LanguageStepGraph,
    MaskDecoderGraph,
    prefill_axes,
    step_spec,
)
from inference.export.weights import SMALLEST_INT8, shrink_weights
from inference.models.sim4seg import Sim4Seg
from inference.runtime.language_cache import cache_names

OPSET = 17  # the first with LayerNormalization in one node


def language_specs(model: Sim4Seg, side: int) -> dict[str, ExportSpec]:
    """First pass over image (`side` x `side`) and question, and step, of the language model."""
    config = model.config.language
    return {
        "language_prefill.onnx": ExportSpec(
            LanguagePrefillGraph(model),
            {"pixels": torch.randn(1, 3, side, side), "text_ids": torch.tensor([[4, 7, 8, 9, 10, 11]])},
            ("logits", "image_tokens", "state_embedding", *cache_names(config.depth, "prefix")),
            prefill_axes(config.depth),
        ),
        "language_step.onnx": step_spec(LanguageStepGraph(model), config, ("logits", "state_embedding")),
    }


def sim4seg_specs(model: Sim4Seg, side: int = 256) -> dict[str, ExportSpec]:
    """The four graphs of a Sim4Seg package by file name. `model` must be in eval mode."""
    grid = model.config.grid
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        embedding = model.image_encoder(pixels)
    hw = (embedding.shape[-2], embedding.shape[-1])
    return {
        "image_encoder.onnx": ExportSpec(ImageEncoderGraph(model), {"pixels": pixels}, ("image_embedding",)),
        **language_specs(model, side),
        "mask_decoder.onnx": ExportSpec(
            MaskDecoderGraph(model, hw),
            {
                "image_embedding": embedding,
                "image_tokens": torch.randn(grid**2, model.config.decoder.width),
                "seg_embedding": torch.randn(2, model.config.decoder.width),
                "valid_cells": torch.ones(grid, grid),
            },
            ("low_res_logits", "iou_predictions", "similarity", "region"),
            {
                name: {0: "prompts"}
                for name in ("seg_embedding", "low_res_logits", "iou_predictions", "similarity", "region")
            },
        ),
    }


def export_graph(spec: ExportSpec, path: Path) -> None:
    """Write one graph to `path` in float32."""
    spec.module.eval()  # or the exporter would put the whole model back into training mode when it is done
    # The tracing exporter is deprecated, but keeps names and opset 17 as declared.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            spec.module,
            tuple(spec.inputs.values()),
            str(path),
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_axes=spec.dynamic,
            opset_version=OPSET,
            custom_opsets=spec.domains or None,
            dynamo=False,
        )


def export_model(
    model: nn.Module,
    folder: Path,
    *,
    int8: bool,
    specs_of: Callable[[Any], dict[str, ExportSpec]] = sim4seg_specs,
    smallest_int8: int = SMALLEST_INT8,
) -> dict[str, ExportSpec]:
    """Write a model's graphs with small weights into `folder`; returns what the parity gate compares."""
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    specs = specs_of(model)
    for name, spec in specs.items():
        export_graph(spec, folder / name)
        shrink_weights(folder / name, int8=int8, smallest_int8=smallest_int8)
    return specs
