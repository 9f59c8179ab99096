"""From a recipe to a stage: records, frames, sampler, validation samples, start weights."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from inference.datasets.frames import Frames, open_frames
from inference.datasets.m3ds import Record, load_records
from inference.datasets.near_duplicates import check_apart, keep_apart, pairs_of
from inference.datasets.sample import M3dsSampler, Sample, frame_sample
from inference.datasets.splits import hash_order
from inference.models.sim4seg import SMALL
from inference.training.losses import LossWeights
from inference.training.stages import Bench, Stage

# kind of a stage -> (module, class); imported on demand, for the rival needs MONAI
STAGES: dict[str, tuple[str, str]] = {
    "segmenter": ("inference.training.stages", "SegmenterStage"),
    "lvlm": ("inference.training.stages", "LvlmStage"),
    "joint": ("inference.training.stages", "JointStage"),
    "prs_med": ("inference.training.prs_stage", "PrsMedStage"),
    "medseg_attend": ("inference.training.medseg_stage", "AttendStage"),
    "medseg_r": ("inference.training.medseg_stage", "MedSegRStage"),
    "unet": ("inference.training.unet_stage", "UnetStage"),
}
SIM4SEG_KINDS = ("segmenter", "lvlm", "joint")


def build_stage(name: str, recipe: dict[str, Any], data: Path, cache: Path, start: list[Path]) -> Stage:
    """The stage `name` of `recipe`, with its data opened and its start weights loaded.

    Raises
    ------
    ValueError
        If the recipe has no such stage, or its kind is not known.
    """
    stages = [key for key, value in recipe.items() if isinstance(value, dict) and "kind" in value]
    if name not in stages:
        raise ValueError(f"the recipe has no stage {name!r}: it has {', '.join(stages)}")
    settings = recipe[name]
    kind = settings["kind"]
    if kind not in STAGES:
        raise ValueError(f"stage {name} is of the kind {kind!r}; known are {', '.join(STAGES)}")
    module, class_name = STAGES[kind]
    build = getattr(importlib.import_module(module), class_name)
    bench = open_bench(recipe, settings, data, cache)
    stage: Stage = build(bench, model_config(recipe)) if kind in SIM4SEG_KINDS else build(bench)
    stage.begin(settings, start)
    return stage


def model_config(recipe: dict[str, Any]) -> Any:
    """sim4seg-s as the recipe's [model] wants it: `top_k` 0 is LISA."""
    return replace(SMALL, top_k=recipe.get("model", {}).get("top_k", SMALL.top_k))


def open_bench(recipe: dict[str, Any], settings: dict[str, Any], data: Path, cache: Path) -> Bench:
    """What every stage works with, from the recipe and the stage's own settings."""
    records = load_records(data)
    frames = open_frames(records, cache, recipe["frame_side"])
    pairs = pairs_of(records, frames, frames.home)
    records = keep_apart(records, pairs)
    check_apart(records, pairs)
    sampler = M3dsSampler(
        records, frames, settings["weights"], recipe["seed"], tickets=settings.get("tickets")
    )
    watched = watched_samples(
        records, frames, settings["watched_per_dataset"], has_region=settings["kind"] == "segmenter"
    )
    return Bench(
        sampler=sampler,
        validation=watched,
        weights=LossWeights(**(recipe["losses"] | settings.get("losses", {}))),
        frame_side=recipe["frame_side"],
        tokenizer=Tokenizer.from_file(recipe["tokenizer"]),
        seg_place=recipe.get("model", {}).get("seg_place", "before"),
    )


def watched_samples(records: list[Record], frames: Frames, count: int, *, has_region: bool) -> list[Sample]:
    """The same few validation images of each data set at every score, picked by the hash of their names."""
    samples: list[Sample] = []
    for dataset in sorted({record.dataset for record in records}):
        rows = {
            record.name: i
            for i, record in enumerate(records)
            if record.dataset == dataset
            and record.split == "val"
            and (record.mask is not None or not has_region)
        }
        samples += [
            frame_sample(records[rows[name]], frames, rows[name]) for name in hash_order(rows)[:count]
        ]
    return samples
