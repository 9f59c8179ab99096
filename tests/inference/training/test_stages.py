"""Each stage learns: a few steps on one made-up data set lower its loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from inference.datasets.frames import open_frames
from inference.datasets.m3ds import load_records
from inference.datasets.sample import M3dsSampler, collate, frame_sample
from inference.models.checkpoints import save_tensors
from inference.models.lite_trunk import TrunkConfig
from inference.models.lvlm import LanguageConfig, TinyTowerConfig
from inference.models.sam import DecoderConfig
from inference.models.sim4seg import Sim4SegConfig
from inference.models.tiny_sam import TinyConfig
from inference.settings import PACKAGES
from inference.training.build import build_stage
from inference.training.losses import LossWeights
from inference.training.stages import (
    Bench,
    JointStage,
    LvlmStage,
    Phase,
    SegmenterStage,
    simulate_region,
    start_from,
    top_cells,
)
from inference.training.train import Run, train
from tests.inference.datasets import tiny_data

TRUNK = TrunkConfig(stem=8, widths=(8, 8, 8, 8, 16, 16, 16), depths=(1,) * 7, expand=2)
TINY = Sim4SegConfig(
    tower=TinyTowerConfig(TRUNK, width=16, attention_blocks=1),
    language=LanguageConfig(vocabulary=768, width=32, depth=1, heads=4, mlp_width=48),
    encoder=TinyConfig(TRUNK, attention_blocks=1, neck_width=16),
    decoder=DecoderConfig(mlp_width=64, mask_tokens=1, attention_downsample=4, activation=torch.nn.ReLU),
    im_start=3,
)
RECIPE = {
    "lr": 2e-3, "lr_floor": 0.1, "betas": [0.9, 0.95], "weight_decay": 0.01, "warm_up_steps": 2,
    "clip_norm": 1.0, "ema_decay": 0.9, "score_every_s": 1000, "save_every_s": 1000,
    "phase": [{"side": 256, "minutes": 1.0, "batch": 2}],
}  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    torch.manual_seed(0)
    records = load_records(tiny_data.write(tmp_path / "data"))
    frames = open_frames(records, tmp_path / "cache", 256)
    return Bench(
        sampler=M3dsSampler(records, frames, {"busbra": 0.8, "fracatlas": 0.2}, seed=0),
        validation=[frame_sample(records[i], frames, i) for i in (1, 2, 4)],
        weights=LossWeights(),
        frame_side=256,
        tokenizer=Tokenizer.from_file(str(PACKAGES / "sim4seg-s" / "tokenizer.json")),
    )


def losses_of(stage: SegmenterStage | LvlmStage, out: Path, steps: int, side: int = 256) -> list[float]:
    run = Run(stage, {**RECIPE, "phase": [{"side": side, "minutes": 1.0, "batch": 2}]}, out)
    stage.module.train()
    return [sum(run.take_step().values()) for _ in range(steps)]


def test_the_segmenter_learns(bench: Bench, tmp_path: Path) -> None:
    losses = losses_of(SegmenterStage(bench, TINY), tmp_path, 12, side=64)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_language_model_learns(bench: Bench, tmp_path: Path) -> None:
    losses = losses_of(LvlmStage(bench, TINY), tmp_path, 10)
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_the_joint_stage_trains_what_the_paper_trains(bench: Bench, tmp_path: Path) -> None:
    stage = JointStage(bench, TINY)
    stage.begin({"freeze_image_encoder": True}, [])
    before = {name: value.clone() for name, value in stage.learner.model.state_dict().items()}
    losses = losses_of(stage, tmp_path, 3)
    assert all(torch.isfinite(torch.tensor(losses)))
    moved = {
        name.split(".")[0]
        for name, value in stage.learner.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"vision_tower", "projector", "language_model", "text_hidden_fcs", "mask_decoder"}
    assert {"dice busbra", "recall malignant", "tokens"} <= set(stage.validate(Phase(256, 1, 2)))


def test_a_run_goes_on_where_it_stopped(bench: Bench, tmp_path: Path) -> None:
    recipe = {**RECIPE, "phase": [{"side": 64, "minutes": 1.0, "batch": 2}]}
    first = Run(SegmenterStage(bench, TINY), recipe, tmp_path)
    first.take_step()
    first.elapsed_s = 59.9
    first.save()
    again = Run(SegmenterStage(bench, TINY), recipe, tmp_path)
    train(again)
    assert again.step >= 2
    assert again.elapsed_s >= again.total_s
    assert '"busbra"' in (tmp_path / "log.jsonl").read_text()
    start = JointStage(bench, TINY)
    start_from(start.learner, tmp_path / "weights.safetensors")
    encoder = start.learner.model.image_encoder.state_dict()
    assert all(torch.equal(encoder[name], again.average[f"image_encoder.{name}"]) for name in encoder)


def test_a_restored_package_can_be_trained_on(bench: Bench, tmp_path: Path) -> None:
    made, stage = JointStage(bench, TINY), JointStage(bench, TINY)
    whole = {f"model.{name}": value for name, value in made.learner.model.state_dict().items()}
    save_tensors(tmp_path / "restored.safetensors", whole, {})  # no label head, no offset of the map
    stage.begin({"freeze_image_encoder": True}, [tmp_path / "restored.safetensors"])
    taken = stage.learner.model.state_dict()
    assert all(torch.equal(taken[name.removeprefix("model.")], value) for name, value in whole.items())


def test_masks_learn_on_and_every_word_stays(bench: Bench, tmp_path: Path) -> None:
    stage = JointStage(bench, TINY)
    stage.begin({"freeze_image_encoder": False, "freeze_lvlm": True}, [])
    before = {name: value.clone() for name, value in stage.learner.state_dict().items()}
    losses_of(stage, tmp_path, 2)
    after = stage.learner.state_dict()
    changed = {name.split(".")[1] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"image_encoder", "mask_decoder"}
    assert not any("running" in name for name in after if not torch.equal(after[name], before[name]))


def test_phases_follow_the_clock(bench: Bench, tmp_path: Path) -> None:
    phases = [{"side": 128, "minutes": 1.0, "batch": 4}, {"side": 256, "minutes": 2.0, "batch": 2}]
    run = Run(SegmenterStage(bench, TINY), {**RECIPE, "phase": phases}, tmp_path)
    sides = []
    for run.elapsed_s in (0, 59, 61, 500):
        sides.append(run.phase.side)
    assert sides == [128, 128, 256, 256]
    run.step, run.elapsed_s = 100, run.total_s
    assert run.learning_rate() == pytest.approx(2e-4)


def test_simulated_regions_keep_to_the_image(bench: Bench) -> None:
    samples = bench.sampler.draw(4, only_regions=True)
    batch = collate(samples, 256, 128)
    region = simulate_region(batch, bench.sampler.rng)
    assert region.sum(dim=(1, 2)).max() <= 36
    assert not (region * (1 - batch.valid_cells)).any()
    exact = top_cells(batch.cells, batch.valid_cells, 36)
    assert ((exact * batch.cells).sum((1, 2)) / batch.cells.sum((1, 2))).min() > 0.9


def test_weights_scale_their_losses(bench: Bench) -> None:
    phase = Phase(256, 1, 2)
    stage = LvlmStage(replace(bench, weights=replace(bench.weights, region=0.0, label=0.0)), TINY)
    losses = stage.losses(phase)
    assert losses["region"].item() == losses["label"].item() == 0
    assert losses["text"].item() > 0


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage 'tuen': it has $"):
        build_stage("tuen", {"seed": 1}, tmp_path, tmp_path, [])
