"""Dice, BCE, text cross-entropy, and each paper's weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Sim4Seg: 1 text, 2.0 BCE, 0.5 Dice (arXiv 2511.06665, section 4.1; models.md 1.4).

    From `iou` on they are ours: `iou` is SAM's head, the others help a model that starts from nothing.
    """

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    iou: float = 0.05
    region: float = 0.5  # BCE between the similarity map and the mask's cells
    label: float = 0.3  # diagnosis from the pooled tower, training only
    diagnosis_token: float = 4.0  # weight of a diagnosis's (or a zone's) tokens inside the text loss
    attention: float = 0.5  # MedSeg-R's spatial attention against the mask
    modality: float = 0.5  # PRS-Med's auxiliary head: 0.5 in the released code, not in the paper


def dice_loss(logits: Tensor, target: Tensor, eps: float = 1.0) -> Tensor:
    """1 - soft Dice per mask, mean over the batch; logits and target (B, 1, H, W)."""
    chance = logits.float().sigmoid().flatten(1)
    flat = target.flatten(1)
    overlap = 2 * (chance * flat).sum(1) + eps
    return (1 - overlap / (chance.sum(1) + flat.sum(1) + eps)).mean()


def mask_loss(logits: Tensor, target: Tensor, weights: LossWeights) -> Tensor:
    """Weighted BCE + Dice of mask logits (B, 1, H, W) against `target` 0/1 of that shape."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), target)
    return weights.bce * bce + weights.dice * dice_loss(logits, target)


def iou_loss(predicted: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Squared error of the predicted IoU (B, 1) against the IoU the mask really has (SAM)."""
    with torch.no_grad():
        mask, truth = logits.flatten(1) > 0, target.flatten(1) > 0.5
        union = (mask | truth).sum(1).clamp(min=1)
        actual = (mask & truth).sum(1) / union
    return F.mse_loss(predicted[:, 0].float(), actual.float())


def text_loss(logits: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
    """Cross-entropy (B, T, V) against (B, T), weighted per token; weight 0 where nothing is asked."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    flat = token_weights.flatten()
    return (losses * flat).sum() / flat.sum().clamp(min=1.0)


def region_loss(similarity: Tensor, cells: Tensor, valid: Tensor) -> Tensor:
    """BCE of similarity logits (B, g, g) against the share of each cell the mask covers, valid cells only.

    Covered cells weigh three times as much, for most cells are empty.
    """
    losses = F.binary_cross_entropy_with_logits(similarity.float(), cells, reduction="none")
    weights = valid * (1 + 2 * cells)
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)
