"""From a recipe to a stage: records, frames, sampler, validation samples, start weights."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from inference.datasets.frames import Frames, open_frames
from inference.datasets.m3ds import Record, load_records
from inference.datasets.sample import M3dsSampler, Sample, frame_sample
from inference.datasets.splits import hash_order
from inference.models.checkpoints import load_into, load_tensors, with_prefix
from inference.training.losses import LossWeights
from inference.training.stages import Bench, JointStage, Learner, LvlmStage, SegmenterStage, Stage

SAM_PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
LVLM_PARTS = ("vision_tower", "projector", "language_model", "text_hidden_fcs")


def build_stage(name: str, recipe: dict[str, Any], data: Path, cache: Path, start: list[Path]) -> Stage:
    """The stage `name` of `recipe`, with its data opened and its start weights loaded."""
    records = load_records(data)
    frames = open_frames(records, cache, recipe["frame_side"])
    settings = recipe[name]
    sampler = M3dsSampler(
        records, frames, settings["weights"], recipe["seed"], tickets=settings.get("tickets")
    )
    watched = watched_samples(
        records, frames, settings["watched_per_dataset"], has_region=name == "segmenter"
    )
    bench = Bench(
        sampler=sampler,
        validation=watched,
        weights=LossWeights(**(recipe["losses"] | settings.get("losses", {}))),
        frame_side=recipe["frame_side"],
        tokenizer=Tokenizer.from_file(recipe["tokenizer"]),
    )
    if name == "segmenter":
        return _segmenter_stage(bench, start)
    stage = {"lvlm": LvlmStage, "joint": JointStage, "tune": JointStage}[name](bench)
    for path in start:
        if name == "tune":
            load_into(stage.learner, load_tensors(path)[0])
        else:
            start_from(stage.learner, path)
    if isinstance(stage, JointStage) and settings["freeze_image_encoder"]:
        stage.freeze_image_encoder()
    return stage


def _segmenter_stage(bench: Bench, start: list[Path]) -> SegmenterStage:
    """Stage A; a start file of an earlier form of it may lack a head."""
    segmenter = SegmenterStage(bench)
    for path in start:
        segmenter.module.load_state_dict(load_tensors(path)[0], strict=False)
    return segmenter


def start_from(learner: Learner, path: Path) -> None:
    """Take over the weights of an earlier stage: a segmenter's SAM parts, or a learner's LVLM parts.

    Raises
    ------
    CheckpointError
        If the file holds neither.
    """
    tensors, _ = load_tensors(path)
    is_segmenter = any(name.startswith("image_encoder.") for name in tensors)
    parts = SAM_PARTS if is_segmenter else LVLM_PARTS
    for part in parts:
        found = with_prefix(tensors, f"{part}." if is_segmenter else f"model.{part}.")
        load_into(getattr(learner.model, part), found)
    if not is_segmenter:
        load_into(learner.label_head, with_prefix(tensors, "label_head."))
        learner.map_offset.data.copy_(tensors["map_offset"])


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
