"""Training MedSeg-R: adapters, cognitive stage and decoder on top of a trained segmenter.

First, spatial attention learns what a location means: behind a gate that begins at zero it would learn
nothing from the mask. Then everything but the image encoder learns from the mask: BCE + Dice as in the
segmenter stage (the paper's loss is not known), in images some of which have a second target, so that words
are needed. Last the image encoder learns with the rest: one that stays takes what attention dimmed for
another image, and words cost more than they gain. Reports are dropped at random (`Missing`), so that the
model works without one; the recipe says which fields are never shown.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.datasets.distractors import with_distractor
from inference.datasets.report_guided import (
    NOTHING,
    Missing,
    lost_fields,
    prior_batch,
    report_of,
    shuffled,
)
from inference.datasets.sample import ImageBatch, Sample, collate
from inference.models.checkpoints import load_into, load_tensors, with_prefix
from inference.models.medseg_r import SMALL, MedSegR, MedSegRConfig, PerceptualAdapter
from inference.reports import Priors
from inference.training.losses import iou_loss, mask_loss
from inference.training.stages import (
    SAM_PARTS,
    Bench,
    Losses,
    Phase,
    channels_last,
    dice_by_dataset,
    fix_batch_norms,
    is_outlined,
    keep_trunks,
    kind_indices,
    mixed_precision,
)

GROWN_ON = 32  # side of the map on which a mask is grown
MISSED = 6.0  # ours: what a place counts that attention should look at, beside one that it should not


class MedSegRLearner(nn.Module):
    """MedSeg-R under the name that checkpoints give it, `model.`."""

    def __init__(self, config: MedSegRConfig) -> None:
        super().__init__()
        self.model = MedSegR(config)


class MedSegRStage:
    """Masks with and without reports."""

    def __init__(self, bench: Bench, config: MedSegRConfig = SMALL) -> None:
        self.learner = channels_last(MedSegRLearner(config))
        self.module: nn.Module = self.learner
        self.bench = bench
        self.missing = Missing()
        self.leave_out: tuple[str, ...] = ()
        self.distractor_share = 0.0
        self._earlier: dict[str, Sample] = {}  # the last of each data set, whose target is put into others

    def begin(self, settings: dict[str, Any], start: Sequence[Path]) -> None:
        """Take the recipe's settings and the weights to start from: SAM's parts, or a whole MedSeg-R."""
        self.missing = Missing(**settings.get("missing", {}))
        self.leave_out = tuple(settings.get("leave_out", ()))
        self.distractor_share = settings.get("distractor_share", 0.0)
        for path in start:
            start_medseg_r(self.learner, path)
        model = self.learner.model
        model.prompt_encoder.requires_grad_(False)
        if settings["freeze_image_encoder"]:
            model.image_encoder.requires_grad_(False)
        keep_trunks(model, settings.get("kept_stages", 0))
        first = min(adapters_of(model).items())[1]
        first.gates.data[0] += settings.get("open_location", 0.0)

    def draw(self, phase: Phase) -> tuple[list[Sample], ImageBatch, list[Priors]]:
        """A fresh batch of images with something outlined, and what is told of each."""
        drawn = [s for s in self.bench.sampler.draw(phase.batch) if is_outlined(s)]
        rng = self.bench.sampler.rng
        lost = [lost_fields(rng, self.missing, self.leave_out) for _ in drawn]
        samples = [
            sample if "location" in fields else self._among_others(sample)
            for sample, fields in zip(drawn, lost, strict=True)
        ]
        priors = [report_of(sample, fields).priors for sample, fields in zip(samples, lost, strict=True)]
        return samples, collate(samples, self.bench.frame_side, phase.side), priors

    def _among_others(self, sample: Sample) -> Sample:
        """The sample, perhaps with a second target in it: the report says which one is meant."""
        rng = self.bench.sampler.rng
        other = self._earlier.get(sample.record.dataset)
        self._earlier[sample.record.dataset] = sample
        if other is None or rng.random() >= self.distractor_share:
            return sample
        return with_distractor(sample, other, rng) or sample

    def losses(self, phase: Phase) -> Losses:
        """One batch: mask, attention, SAM's IoU head, modality."""
        samples, batch, priors = self.draw(phase)
        weights, model = self.bench.weights, self.learner.model
        fix_batch_norms(model)
        with mixed_precision(), attention_maps(model) as maps:
            embedding = model.embed(batch.pixels, prior_batch(priors, self.bench.tokenizer))
            logits, iou = model.draw(embedding)
            kinds = model.kind(embedding)
        return {
            "mask": mask_loss(logits, batch.masks, weights),
            "attention": weights.attention * attention_loss(maps, batch.masks, priors),
            "iou": weights.iou * iou_loss(iou, logits, batch.masks),
            "modality": weights.modality * F.cross_entropy(kinds.float(), kind_indices(samples)),
        }

    def validate(self, phase: Phase) -> dict[str, float]:
        """Dice per data set without a report; and with reports, and with the reports of others."""
        shown = [sample for sample in self.bench.validation if sample.mask.any()]
        told = [report_of(sample, self.leave_out).priors for sample in shown]
        ways = {"dice": [NOTHING] * len(shown), "told": told, "shuffled": shuffled(told)}
        return {
            f"{way} {name}": value
            for way, priors in ways.items()
            for name, value in self._dice(shown, priors, phase.side).items()
        }

    def _dice(self, shown: list[Sample], priors: list[Priors], side: int) -> dict[str, float]:
        parts = iter([priors[start : start + 16] for start in range(0, len(shown), 16)])
        model = self.learner.model

        def predict(batch: ImageBatch) -> Tensor:
            ids = prior_batch(next(parts), self.bench.tokenizer)
            return model.draw(model.embed(batch.pixels, ids))[0]

        return dice_by_dataset(shown, predict, self.bench.frame_side, side)


class AttendStage(MedSegRStage):
    """Spatial attention alone, before any gate opens: where to look, given what was said of the place."""

    def losses(self, phase: Phase) -> Losses:
        """One batch: attention."""
        _, batch, priors = self.draw(phase)
        fix_batch_norms(self.learner.model)
        return {"attention": self._loss(batch, priors)}

    def validate(self, phase: Phase) -> dict[str, float]:
        """The loss with the reports of the images, and with those of others."""
        shown = [sample for sample in self.bench.validation if sample.mask.any()]
        told = [report_of(sample, self.leave_out).priors for sample in shown]
        batch = collate(shown, self.bench.frame_side, phase.side)
        with torch.no_grad():
            ways = {"told": told, "shuffled": shuffled(told)}
            return {f"attention {way}": float(self._loss(batch, priors)) for way, priors in ways.items()}

    def _loss(self, batch: ImageBatch, priors: Sequence[Priors]) -> Tensor:
        with mixed_precision():
            maps = early_maps(self.learner.model, batch.pixels, prior_batch(priors, self.bench.tokenizer))
        return attention_loss(maps, batch.masks, priors)


def adapters_of(model: MedSegR) -> dict[int, PerceptualAdapter]:
    """The adapters by the stage or block that each stands before."""
    found = {int(site): adapter for site, adapter in model.adapters.items()}
    return {site: adapter for site, adapter in found.items() if isinstance(adapter, PerceptualAdapter)}


class _SeenEnough(Exception):
    """Every adapter has had its features."""


def early_maps(model: MedSegR, pixels: Tensor, prior_ids: Tensor) -> list[Tensor]:
    """What `attention_maps` collects, of features that nothing steers, without the rest of the encoder.

    pixels (B, 3, S, S) normalised, prior_ids (B, 3, P) int64 -> (B, 1, h, w) in 0..1, one for each site.
    """
    maps: list[Tensor] = []
    fused: list[Tensor] = []
    adapters = adapters_of(model)

    def look(site: int, x: Tensor) -> Tensor:
        if site in adapters:
            fused[:] = fused or [model.cognitive(prior_ids, x)]
            maps.append(adapters[site].attention(x, fused[0][:, 0]))
        if len(maps) == len(adapters):
            raise _SeenEnough
        return x

    with suppress(_SeenEnough):
        model.image_encoder(pixels, look)
    return maps


@contextmanager
def attention_maps(model: MedSegR) -> Iterator[list[Tensor]]:
    """Collect what the spatial attentions of each call give: (B, 1, H, W) in 0..1, one for each site."""
    maps: list[Tensor] = []
    hooks = [
        adapter.attention.register_forward_hook(lambda _, __, out: maps.append(out))
        for adapter in adapters_of(model).values()
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def attention_loss(maps: Sequence[Tensor], masks: Tensor, priors: Sequence[Priors]) -> Tensor:
    """Mean BCE of maps (B, 1, h, w) in 0..1 against where to look, given masks (B, 1, H, W) and the priors.

    That is the mask grown by an eighth of the side where a location was told, and everywhere where none was.
    What is dimmed is lost, what is not dimmed costs little: a place that is missed counts MISSED times.
    """
    is_told = torch.tensor([prior.location is not None for prior in priors])
    coarse = F.adaptive_max_pool2d(masks, GROWN_ON)
    near = F.max_pool2d(coarse, GROWN_ON // 4 + 1, 1, GROWN_ON // 8)
    wanted = torch.where(is_told[:, None, None, None], near, torch.ones_like(near))
    sized = [F.adaptive_avg_pool2d(each.float(), GROWN_ON) for each in maps]
    weight = 1 + (MISSED - 1) * wanted
    return torch.stack([F.binary_cross_entropy(each, wanted, weight) for each in sized]).mean()


def start_medseg_r(learner: MedSegRLearner, path: Path) -> None:
    """Take over a whole MedSeg-R, or the SAM parts of a segmenter or of another whole model.

    Raises
    ------
    CheckpointError
        If parts are missing.
    """
    tensors, _ = load_tensors(path)
    if any(name.startswith("model.adapters.") for name in tensors):
        load_into(learner, tensors)
        return
    found = with_prefix(tensors, "model.") or tensors
    for part in SAM_PARTS:
        load_into(getattr(learner.model, part), with_prefix(found, f"{part}."))
    if "constant_prompt" in tensors:
        learner.model.default_prompt.data.copy_(tensors["constant_prompt"])
