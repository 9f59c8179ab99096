"""Training PRS-Med: fusion alone, then everything, by the paper's two stages.

Loss: BCE + Dice + 0.5 CE (paper; models.md 2.3). Departures: the mask is conditioned on image and question
only (the release lets it see the true answer); text loss on answer tokens only (the release counts the
question and the padding); the modality head of the released code has a weight of its own in the recipe;
images without a target are kept, with an empty mask and an answer that says so (the paper drops them).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.datasets.posmed import PositionBatch, encode_positions
from inference.datasets.sample import ImageBatch, collate
from inference.models.checkpoints import load_into, load_tensors, with_prefix
from inference.models.prs_med import SMALL, PrsMed, PrsMedConfig
from inference.positions import parse_position
from inference.training.losses import mask_loss, text_loss
from inference.training.stages import (
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

BORROWED_PARTS = ("vision_tower", "projector", "language_model", "image_encoder")  # of a trained Sim4Seg
FUSION_PARTS = ("mask_decoder", "modality_head")  # what stage 1 trains; the paper freezes encoder and LLM


class PrsLearner(nn.Module):
    """PRS-Med under the name that checkpoints give it, `model.`."""

    def __init__(self, config: PrsMedConfig) -> None:
        super().__init__()
        self.model = PrsMed(config)


class PrsMedStage:
    """Position questions, their answers, and the mask asked for; one pass of the language model a step."""

    def __init__(self, bench: Bench, config: PrsMedConfig = SMALL) -> None:
        self.learner = channels_last(PrsLearner(config))
        self.module: nn.Module = self.learner
        self.bench = bench

    def begin(self, settings: dict[str, Any], start: Sequence[Path]) -> None:
        """Take the weights to start from; with `only_fusion` (stage 1) everything else stays as it is."""
        for path in start:
            start_prs_med(self.learner, path)
        for name, part in self.learner.model.named_children():
            part.requires_grad_(name in FUSION_PARTS or not settings["only_fusion"])
        keep_trunks(self.learner, settings.get("kept_stages", 0))

    def losses(self, phase: Phase) -> Losses:
        """One batch: text, mask and modality."""
        samples = self.bench.sampler.draw(phase.batch)
        batch = collate(samples, self.bench.frame_side, phase.side)
        rng, weights = self.bench.sampler.rng, self.bench.weights
        text, _ = encode_positions(samples, self.bench.tokenizer, rng, weights.diagnosis_token)
        model = self.learner.model
        fix_batch_norms(model)
        with mixed_precision():
            states = model.read(batch.pixels, text.ids)
            embedding = model.image_encoder(batch.pixels)
            logits = self._mask(states, text, embedding)
            said = model.language_model.lm_head(states[:, model.image_stop : -1])
            kinds = model.modality(embedding)
        has_mask = torch.tensor([is_outlined(sample) for sample in samples])
        losses = {
            "text": weights.text * text_loss(said, text.ids[:, 1:], text.weights),
            "modality": weights.modality * F.cross_entropy(kinds.float(), kind_indices(samples)),
        }
        if has_mask.any():
            losses["mask"] = mask_loss(logits[has_mask], batch.masks[has_mask], weights)
        return {name: loss for name, loss in losses.items() if loss.requires_grad}

    def _mask(self, states: Tensor, text: PositionBatch, embedding: Tensor) -> Tensor:
        return self.learner.model.draw(embedding, *self.learner.model.condition(states, text.question))

    def validate(self, phase: Phase) -> dict[str, float]:
        """Dice per data set, and how often the teacher-forced zone is right."""
        rng = np.random.default_rng(0)
        shown = [sample for sample in self.bench.validation if is_outlined(sample)]
        parts = iter([shown[start : start + 16] for start in range(0, len(shown), 16)])
        zones: list[bool] = []

        def predict(batch: ImageBatch) -> Tensor:
            text, exchanges = encode_positions(next(parts), self.bench.tokenizer, rng, 100.0)
            model = self.learner.model
            states = model.read(batch.pixels, text.ids)
            said = model.language_model.lm_head(states[:, model.image_stop : -1]).argmax(-1)
            for i, exchange in enumerate(exchanges):
                ids = said[i][text.weights[i] > 0].tolist()
                zones.append(exchange.position in parse_position(self.bench.tokenizer.decode(ids)).zones)
            return self._mask(states, text, model.image_encoder(batch.pixels))

        dice = dice_by_dataset(shown, predict, self.bench.frame_side, phase.side)
        return {"zone": float(np.mean(zones)), **{f"dice {name}": value for name, value in dice.items()}}


def start_prs_med(learner: PrsLearner, path: Path) -> None:
    """Take over a whole PRS-Med, or what a trained Sim4Seg has in common with it.

    Raises
    ------
    CheckpointError
        If parts are missing.
    """
    tensors, _ = load_tensors(path)
    if any(name.startswith("model.modality_head.") for name in tensors):
        load_into(learner, tensors)
        return
    for part in BORROWED_PARTS:
        load_into(getattr(learner.model, part), with_prefix(tensors, f"model.{part}."))
