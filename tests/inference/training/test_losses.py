"""The losses against values worked out by hand, and the paper's weights."""

import math

import pytest
import torch

from inference.training.losses import LossWeights, dice_loss, iou_loss, mask_loss, region_loss, text_loss


def test_weights_are_the_papers() -> None:
    weights = LossWeights()
    assert (weights.text, weights.bce, weights.dice) == (1.0, 2.0, 0.5)


def test_mask_loss_is_two_bce_and_half_a_dice() -> None:
    logits, target = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    target[..., :4] = 1
    dice = 1 - (2 * 16 + 1) / (32 + 32 + 1)
    assert dice_loss(logits, target).item() == pytest.approx(dice)
    assert mask_loss(logits, target, LossWeights()).item() == pytest.approx(2 * math.log(2) + 0.5 * dice)


def test_a_perfect_mask_costs_nothing() -> None:
    target = torch.randint(0, 2, (2, 1, 8, 8)).float()
    assert mask_loss((target - 0.5) * 200, target, LossWeights()).item() == pytest.approx(0, abs=1e-4)


def test_iou_loss_asks_for_the_true_iou() -> None:
    logits, target = torch.full((1, 1, 4, 4), -1.0), torch.zeros(1, 1, 4, 4)
    logits[..., :2] = 1.0
    target[..., :2, :] = 1.0
    assert iou_loss(torch.tensor([[4 / 12]]), logits, target).item() == pytest.approx(0, abs=1e-7)
    assert iou_loss(torch.tensor([[1.0]]), logits, target).item() == pytest.approx((8 / 12) ** 2)


def test_text_loss_counts_answer_tokens_only() -> None:
    logits, targets = torch.randn(2, 3, 5), torch.randint(0, 5, (2, 3))
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    chance = logits.log_softmax(-1)
    want = -(chance[0, 1, targets[0, 1]] + 3 * chance[1, 2, targets[1, 2]]) / 4
    assert text_loss(logits, targets, weights).item() == pytest.approx(want.item(), rel=1e-5)
    changed = logits.clone()
    changed[0, 0] += 5
    assert text_loss(changed, targets, weights).item() == pytest.approx(want.item(), rel=1e-5)


def test_region_loss_ignores_the_padding() -> None:
    similarity, cells, valid = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    valid[:, 2:] = 0
    similarity[:, 2:] = 50
    assert region_loss(similarity, cells, valid).item() == pytest.approx(math.log(2))
