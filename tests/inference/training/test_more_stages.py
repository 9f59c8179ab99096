"""PRS-Med, MedSeg-R and the rival learn by the same loop; recipes hold what their stages ask for."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from inference.datasets.frames import open_frames
from inference.datasets.m3ds import load_records
from inference.datasets.report_guided import Missing
from inference.datasets.sample import M3dsSampler, Sample, frame_sample
from inference.datasets.text import encode_batch
from inference.models.checkpoints import save_tensors
from inference.prompts import parse_answer
from inference.reports import Priors
from inference.settings import PACKAGES
from inference.training import medseg_stage
from inference.training.build import STAGES, model_config
from inference.training.losses import LossWeights
from inference.training.medseg_stage import (
    AttendStage,
    MedSegRStage,
    adapters_of,
    attention_loss,
    attention_maps,
    early_maps,
)
from inference.training.prs_stage import PrsMedStage
from inference.training.recipe import load_recipe
from inference.training.stages import Bench, JointStage, Phase, SegmenterStage, Stage
from inference.training.train import Run, in_a_hurry
from tests.inference.datasets import tiny_data
from tests.inference.models.test_medseg_r import TINY as TINY_MEDSEG
from tests.inference.models.test_prs_med import TINY as TINY_PRS
from tests.inference.training.test_stages import RECIPE
from tests.inference.training.test_stages import TINY as TINY_SIM4SEG

RECIPES = sorted((Path(__file__).parents[3] / "inference" / "training" / "recipes").glob("*.toml"))
MEDSEG = replace(
    TINY_MEDSEG,
    priors=replace(TINY_MEDSEG.priors, vocabulary=768),
    decoder=TINY_SIM4SEG.decoder,
    encoder=TINY_SIM4SEG.encoder,
)
PRS = replace(TINY_PRS, encoder=TINY_SIM4SEG.encoder, language=TINY_SIM4SEG.language)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    records = load_records(tiny_data.write(tmp_path / "data"))
    frames = open_frames(records, tmp_path / "cache", 256)
    return Bench(
        sampler=M3dsSampler(records, frames, {"busbra": 0.8, "fracatlas": 0.2}, seed=0),
        validation=[frame_sample(records[i], frames, i) for i in (1, 2, 3)],
        weights=LossWeights(text=0.5, bce=1.0, dice=1.0, modality=0.1),
        frame_side=256,
        tokenizer=Tokenizer.from_file(str(PACKAGES / "sim4seg-s" / "tokenizer.json")),
    )


def learn(stage: Stage, out: Path, steps: int, side: int) -> list[float]:
    run = Run(stage, {**RECIPE, "phase": [{"side": side, "minutes": 1.0, "batch": 2}]}, out)
    stage.module.train()
    return [sum(run.take_step().values()) for _ in range(steps)]


def test_prs_med_learns(bench: Bench, tmp_path: Path) -> None:
    stage = PrsMedStage(bench, PRS)
    stage.begin({"only_fusion": False}, [])
    losses = learn(stage, tmp_path, 8, 256)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert {"zone", "dice busbra"} <= set(stage.validate(Phase(256, 1, 2)))


def test_prs_meds_first_stage_trains_the_fusion_alone(bench: Bench, tmp_path: Path) -> None:
    whole = JointStage(bench, TINY_SIM4SEG)
    save_tensors(tmp_path / "sim4seg.safetensors", whole.module.state_dict())
    stage = PrsMedStage(bench, PRS)
    stage.begin({"only_fusion": True}, [tmp_path / "sim4seg.safetensors"])
    borrowed = whole.learner.model.state_dict()
    learn(stage, tmp_path, 2, 256)
    for name, value in stage.learner.model.state_dict().items():
        if name.split(".")[0] in ("mask_decoder", "modality_head"):
            continue
        assert torch.equal(value, borrowed[name]), name


@pytest.mark.parametrize("is_whole", [False, True], ids=["segmenter", "sim4seg"])
def test_medseg_r_learns_from_a_segmenter_on(bench: Bench, tmp_path: Path, is_whole: bool) -> None:
    kind = JointStage if is_whole else SegmenterStage
    save_tensors(tmp_path / "start.safetensors", kind(bench, TINY_SIM4SEG).module.state_dict())
    stage = MedSegRStage(bench, MEDSEG)
    settings = {"freeze_image_encoder": True, "leave_out": ["shape"], "missing": {"report": 0.2}}
    stage.begin({**settings, "distractor_share": 1.0}, [tmp_path / "start.safetensors"])
    assert not any(adapter.gates.any() for adapter in stage.learner.model.adapters.values())
    encoder = {n: v.clone() for n, v in stage.learner.model.image_encoder.state_dict().items()}
    losses = learn(stage, tmp_path, 10, 64)
    assert sum(losses[-3:]) < sum(losses[:3])
    after = stage.learner.model.image_encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in encoder.items())
    assert any(adapter.gates.any() for adapter in stage.learner.model.adapters.values())
    assert {"dice busbra", "told busbra", "shuffled busbra"} <= set(stage.validate(Phase(64, 1, 2)))


def test_medseg_rs_last_stage_trains_the_image_encoder_too(bench: Bench, tmp_path: Path) -> None:
    stage = MedSegRStage(bench, MEDSEG)
    stage.begin({"freeze_image_encoder": False, "kept_stages": 1, "distractor_share": 0.5}, [])
    parts = dict(stage.learner.model.image_encoder.named_parameters())
    before = {name: value.detach().clone() for name, value in parts.items()}
    learn(stage, tmp_path, 3, 64)
    moved = {name for name, value in parts.items() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in parts.items() if value.requires_grad}
    assert moved < set(parts), "stem and first stage stay"


def test_spatial_attention_learns_what_a_location_means(bench: Bench, tmp_path: Path) -> None:
    save_tensors(tmp_path / "start.safetensors", SegmenterStage(bench, TINY_SIM4SEG).module.state_dict())
    stage = AttendStage(bench, MEDSEG)
    settings = {"freeze_image_encoder": True, "missing": {"report": 0.0, "field": 0.0}, "lr": 0.01}
    stage.begin(settings, [tmp_path / "start.safetensors"])
    before = stage.validate(Phase(64, 1, 2))
    assert set(before) == {"attention told", "attention shuffled"}
    learn(stage, tmp_path, 40, 64)
    assert stage.validate(Phase(64, 1, 2))["attention told"] < 0.8 * before["attention told"]
    assert not any(adapter.gates.any() for adapter in stage.learner.model.adapters.values())


def test_the_recipe_opens_the_first_gate_of_location(bench: Bench) -> None:
    stage = MedSegRStage(bench, MEDSEG)
    stage.begin({"freeze_image_encoder": True, "open_location": 0.8}, [])
    gates = [adapter.gates.tolist() for _, adapter in sorted(adapters_of(stage.learner.model).items())]
    assert gates[0] == pytest.approx([0.8, 0, 0])
    assert not any(any(each) for each in gates[1:])


def test_only_what_is_told_a_location_gets_a_second_target(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = MedSegRStage(bench, MEDSEG)
    stage.distractor_share = 1.0
    asked: list[Sample] = []
    monkeypatch.setattr(medseg_stage, "with_distractor", lambda sample, _, __: asked.append(sample))
    stage.missing = Missing(report=1.0)
    stage.draw(Phase(64, 1, 8))
    assert not asked
    stage.missing = Missing(report=0.0, field=0.0)
    drawn = [sample for _ in range(4) for sample in stage.draw(Phase(64, 1, 8))[0]]
    datasets = {sample.record.dataset for sample in drawn}
    assert len(asked) == len(drawn) - len(datasets)  # the first of each data set has none to borrow from


def test_where_to_look_is_everywhere_or_near_the_mask() -> None:
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, 0, 32, 32] = 1
    priors = [Priors(location="in the centre of the image"), Priors(shape="round")]
    near = torch.full((2, 1, 64, 64), 1e-6)
    near[0, 0, 24:41, 24:41] = 1 - 1e-6
    near[1] = 1 - 1e-6
    assert attention_loss([near], masks, priors) < 0.05
    assert attention_loss([near.flip(0)], masks, priors) > 1


def test_early_maps_are_those_of_the_whole_pass(bench: Bench) -> None:
    model = MedSegRStage(bench, MEDSEG).learner.model.eval()
    pixels, ids = torch.randn(2, 3, 64, 64), torch.randint(0, 40, (2, 3, 5))
    with torch.no_grad(), attention_maps(model) as whole:
        model.embed(pixels, ids)
        early = early_maps(model, pixels, ids)
    assert len(early) == len(model.adapters)
    for one, other in zip(early, whole, strict=False):
        torch.testing.assert_close(one, other)


def test_the_rival_learns(bench: Bench, tmp_path: Path) -> None:
    from inference.training.unet_stage import CHANNELS, UnetStage, build_unet

    stage = UnetStage(bench, (16, 8, 8, 4, 4))
    stage.begin({"kept_stages": 1}, [])
    losses = learn(stage, tmp_path, 8, 64)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert "busbra" in stage.validate(Phase(64, 1, 2))
    with torch.device("meta"):
        assert round(sum(p.numel() for p in build_unet(CHANNELS).parameters()) / 1e6, 1) == 4.7


def test_seg_after_the_chain(bench: Bench) -> None:
    samples = [s for s in bench.validation if s.mask.any()]
    rng = bench.sampler.rng
    before = encode_batch(samples, bench.tokenizer, rng, 9.0)
    after = encode_batch(samples, bench.tokenizer, rng, 9.0, "after")
    for batch, is_late in ((before, False), (after, True)):
        for row in range(len(samples)):
            answer = batch.ids[row, 1:][batch.weights[row] > 0]
            text = bench.tokenizer.decode(answer.tolist(), skip_special_tokens=False)
            assert parse_answer(text).is_well_formed
            assert text.index("[SEG]") > text.index("Finally") if is_late else text.index("[SEG]") < 12
            heavy = bench.tokenizer.decode(batch.ids[row, 1:][batch.weights[row] == 9].tolist())
            assert "It" in heavy
            assert samples[row].record.diagnosis is not None
            assert samples[row].record.diagnosis in heavy
            assert batch.ids[row, batch.seg_index[row] + 1] == 5


def test_lisa_draws_without_a_region(bench: Bench) -> None:
    model = JointStage(bench, replace(TINY_SIM4SEG, top_k=0)).learner.model.eval()
    embedding, seg = torch.randn(1, 256, 16, 16), torch.randn(1, 256)
    nowhere, everywhere = torch.zeros(1, 16, 16), torch.ones(1, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.draw(embedding, seg, nowhere)[0], model.draw(embedding, seg, everywhere)[0])
        _, region = model.locate(torch.randn(1, 256, 256), seg, everywhere)
    assert not region.any()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_hold_what_their_stages_ask_for(path: Path) -> None:
    recipe = load_recipe(path)
    names = {field.name for field in fields(LossWeights)}
    assert set(recipe["losses"]) <= names
    assert model_config(recipe).top_k in (0, 36)
    stages = [value for value in recipe.values() if isinstance(value, dict) and "kind" in value]
    assert stages
    for stage in stages:
        assert stage["kind"] in STAGES
        assert set(stage.get("losses", {})) <= names
        assert sum(stage["weights"].values()) == pytest.approx(1)
        assert all(recipe["frame_side"] % Phase(**phase).side == 0 for phase in stage["phase"])
        assert {"lr", "lr_floor", "betas", "weight_decay", "clip_norm", "ema_decay"} <= set(stage)


def test_a_hurry_shortens_every_phase_and_changes_nothing_else() -> None:
    settings = load_recipe(next(path for path in RECIPES if path.stem == "sim4seg_s"))["segmenter"]
    hurried = in_a_hurry(settings, 0.5)
    assert [phase["minutes"] for phase in hurried["phase"]] == [9.0, 18.0]
    assert [phase["minutes"] for phase in settings["phase"]] == [18.0, 36.0]
    assert hurried | {"phase": settings["phase"]} == settings


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("seed = 1\n[model]\nx = 1\ny = 2\n")
    (tmp_path / "b.toml").write_text('base = "a.toml"\n[model]\ny = 3\n')
    assert load_recipe(tmp_path / "b.toml") == {"seed": 1, "model": {"x": 1, "y": 3}}
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    with pytest.raises(ValueError, match="builds on itself"):
        load_recipe(tmp_path / "b.toml")
