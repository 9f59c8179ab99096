"""Test-time scaling of Sim4Seg without the truth: m reasoning paths by n regions, one of them chosen.

The paper (arXiv 2511.06665, section 3.3) chooses among m x n masks by their gIoU and cIoU - taken with the
truth, which nobody has at the bedside (models.md 1.5). Here the diagnosis is the paths' vote, each weighted
by the mean probability of its tokens (Wang et al., arXiv 2203.11171), and the mask is the one of highest

    predicted IoU + mean IoU with the other candidates + mean similarity inside minus outside

among the paths that voted for that diagnosis. The paper's choice by the truth is computed in evaluation only.
"""

import functools
import hashlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from inference.contract import Diagnosis, Image, Prediction, Prompt
from inference.metrics import iou
from inference.postprocess import mask_at_source
from inference.preprocess import ResizeLongestSide
from inference.runtime.acceptance import refuse_another_kind, refuse_unsuitable
from inference.runtime.generate import Answer, Floats, Sampling, generate_paths
from inference.runtime.packaged import Stopwatch, segment_each
from inference.runtime.predictors import Drawing, Region, Sim4SegPredictor
from inference.settings import InferenceSettings

Cells = NDArray[np.bool_]
SHIFTS = ((0, 1), (1, 0), (0, -1), (-1, 0))
SMALLER = (2 / 3, 5 / 6)  # of top-k: 24 and 30 of 36
SWAPPED = 0.1  # share of the region's cells that give way to the next best


@dataclass(frozen=True)
class Scaling:
    """How many candidates are made, and how they are scored."""

    paths: int = 2  # m; the paper's operating point
    regions: int = 2  # n; likewise
    sampling: Sampling = field(default_factory=Sampling)
    iou_weight: float = 1.0  # ours, as the two below
    agreement_weight: float = 1.0
    contrast_weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """One path's mask for one region."""

    path: int
    region: Region
    score: float = 0.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """Everything that was tried on one image; the first path is greedy and its first region undisturbed."""

    frame: ResizeLongestSide
    answers: list[Answer]
    masks: list[Candidate]
    seconds: float


class ScaledPredictor:
    """Sim4Seg with test-time scaling, behind the same door."""

    def __init__(self, predictor: Sim4SegPredictor, scaling: Scaling | None = None) -> None:
        self.predictor = predictor
        self.scaling = scaling or Scaling()
        self.manifest = predictor.manifest
        # Another way to answer gives other results: they need another identity.
        mark = f"{self.scaling.paths}x{self.scaling.regions}"
        self.name, self.version = predictor.name, f"{predictor.version}+{mark}"
        self.digest = hashlib.sha256(f"{predictor.digest} {self.scaling}".encode()).hexdigest()

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """The answer and the mask chosen among all candidates.

        Raises
        ------
        InputRejected, OutputInvalid, DeviceOutOfMemory
        """
        refuse_unsuitable(image)
        prediction = self.choose(self.candidates(image, prompt))
        refuse_another_kind(image, prediction)
        return prediction

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """One prediction per image; beside a key frame only masks are wanted, and those are not scaled."""
        if like is not None:
            return self.predictor.segment(images, prompt, like)
        return segment_each(self, images, prompt)

    def candidates(self, image: Image, prompt: Prompt) -> Candidates:
        """Answer `prompt` on every path, and draw every path's mask for each of its regions.

        Raises
        ------
        InputRejected, OutputInvalid, DeviceOutOfMemory
        """
        started = time.perf_counter()
        predictor, sampling = self.predictor, self.scaling.sampling
        frame, pixels = predictor.fit(image)
        embed = functools.cache(lambda: predictor.embed(pixels))
        watch = Stopwatch(time.perf_counter)
        drawings = [Drawing(predictor, frame, embed, watch) for _ in range(self.scaling.paths)]
        drawn = [replace(sampling, seed=sampling.seed + path) for path in range(1, self.scaling.paths)]
        answers = generate_paths(
            predictor.engines.language_prefill,
            predictor.engines.language_step,
            {"pixels": pixels, "text_ids": predictor.conversation.question_ids(prompt.query)},
            rules=predictor.rules(max_new_tokens=predictor.max_new_tokens, is_stopped_at_seg=False),
            clock=time.perf_counter,
            samplings=[None, *drawn],
            facts=drawings,
        )
        masks: list[Candidate] = []
        for path, (answer, drawing) in enumerate(zip(answers, drawings, strict=True)):
            if drawing.region is not None:
                regions = self._regions(embed(), answer, drawing.region, frame)
                masks += [Candidate(path, region) for region in regions]
        return Candidates(frame, answers, self._scored(masks), time.perf_counter() - started)

    def choose(self, made: Candidates) -> Prediction:
        """The vote's diagnosis, and of its voters' masks the best."""
        labels = [self._diagnosis(answer) for answer in made.answers]
        weights = [float(np.exp(a.log_probabilities.mean())) if a.token_ids else 0.0 for a in made.answers]
        winner = vote([one.label if one else None for one in labels], weights)
        voters = [i for i, one in enumerate(labels) if (one.label if one else None) == winner]
        mine = [one for one in made.masks if one.path in voters]
        best = max(mine, key=lambda one: one.score, default=None)
        path = best.path if best else max(voters, key=lambda i: weights[i])
        prediction = self.predictor.told(made.answers[path], made.frame, best.region if best else None)
        diagnosis = pooled([one for one in labels if one], winner) if winner else None
        return replace(prediction, diagnosis=diagnosis, seconds={"total": made.seconds})

    def _diagnosis(self, answer: Answer) -> Diagnosis | None:
        return self.predictor.diagnosis_of(answer)

    def _regions(
        self, embedding: Floats, answer: Answer, own: Region, frame: ResizeLongestSide
    ) -> list[Region]:
        """The path's own region first, then disturbed ones."""
        seg = answer.seg_embedding
        if seg is None:
            return []
        predictor = self.predictor
        valid = frame.valid_cells(predictor.manifest.region.grid) > 0
        disturbed = itertools.islice(disturb(own, valid), self.scaling.regions - 1)
        regions = [own]
        for cells in disturbed:
            # The decoder chooses its cells among the valid ones: told no others, it takes just these.
            drawn = predictor.draw(embedding, answer.image_tokens, seg, cells.astype(np.float32))
            regions.append(replace(drawn, similarity=own.similarity))
        return regions

    def _scored(self, masks: list[Candidate]) -> list[Candidate]:
        insides = [one.region.logits > 0 for one in masks]
        return [
            replace(
                one,
                score=self.scaling.iou_weight * one.region.predicted_iou
                + self.scaling.agreement_weight * agreement(insides, i)
                + self.scaling.contrast_weight * contrast(one.region),
            )
            for i, one in enumerate(masks)
        ]


def scaled(predictor: Sim4SegPredictor, settings: InferenceSettings) -> ScaledPredictor:
    """`predictor` with as many paths and regions as `settings` say."""
    return ScaledPredictor(predictor, Scaling(settings.reasoning_paths, settings.regions_per_path))


def vote(labels: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The label of most weight; of equals the one said first. None is a vote too: no diagnosis."""
    totals: dict[str | None, float] = {}
    for label, weight in zip(labels, weights, strict=True):
        totals[label] = totals.get(label, 0.0) + weight
    return max(totals, key=lambda label: totals[label])


def pooled(diagnoses: Sequence[Diagnosis], winner: str) -> Diagnosis:
    """`winner` with the paths' mean probability of each label."""
    tables = [{one.label: one.confidence, **dict(one.alternatives)} for one in diagnoses]
    means = {label: float(np.mean([table.get(label, 0.0) for table in tables])) for label in tables[0]}
    others = sorted(((k, v) for k, v in means.items() if k != winner), key=lambda pair: -pair[1])
    return Diagnosis(winner, means[winner], tuple(others))


def disturb(own: Region, valid: Cells) -> itertools.chain[Cells]:
    """Regions near a path's own: shifted, smaller, with some cells exchanged; inside the image, never empty.

    The paper's distribution is not published; this order is fixed, so that a run can be repeated.
    """
    shifted = (shift(own.cells, *step) & valid for step in SHIFTS)
    smaller = (best_cells(own, int(share * own.cells.sum()) or 1) for share in SMALLER)
    several = itertools.chain([exchanged(own, valid)], shifted, smaller)
    return itertools.chain(cells for cells in several if cells.any())


def shift(cells: Cells, rows: int, columns: int) -> Cells:
    """`cells` (g, g) moved down and right; what leaves the grid is lost."""
    moved = np.zeros_like(cells)
    height, width = cells.shape
    target = moved[max(0, rows) : height + min(0, rows), max(0, columns) : width + min(0, columns)]
    target[...] = cells[max(0, -rows) : height + min(0, -rows), max(0, -columns) : width + min(0, -columns)]
    return moved


def best_cells(own: Region, count: int) -> Cells:
    """The `count` cells of highest similarity of a region; ties go to the lower index."""
    scores = np.where(own.cells, own.similarity, -1.0).reshape(-1)
    chosen = np.zeros(scores.size, np.bool_)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen.reshape(own.cells.shape) & own.cells


def exchanged(own: Region, valid: Cells) -> Cells:
    """The region with its weakest tenth given up for the next best cells beside it."""
    count = int(own.cells.sum())
    swapped = int(np.ceil(SWAPPED * count))
    kept = best_cells(own, count - swapped)
    others = np.where(valid & ~own.cells, own.similarity, -1.0).reshape(-1)
    next_best = np.argsort(-others, kind="stable")[:swapped]
    added = np.zeros(others.size, np.bool_)
    added[next_best[others[next_best] >= 0]] = True
    return kept | added.reshape(own.cells.shape)


def agreement(insides: Sequence[Cells], index: int) -> float:
    """Mean IoU of one mask with all others; 0 where it is alone."""
    others = [iou(insides[index], other) for i, other in enumerate(insides) if i != index]
    return float(np.mean(others)) if others else 0.0


def contrast(region: Region) -> float:
    """Mean similarity inside the mask minus outside, by the share of each cell that the mask covers."""
    grid, step = region.similarity.shape[0], region.logits.shape[0] // region.similarity.shape[0]
    inside = (region.logits > 0).reshape(grid, step, grid, step).mean(axis=(1, 3))
    parts = [
        float((region.similarity * share).sum() / max(share.sum(), 1e-6)) for share in (inside, 1 - inside)
    ]
    return parts[0] - parts[1]


def oracle_mask(made: Candidates, truth: Cells) -> Cells:
    """The paper's own choice: the candidate mask nearest to the truth. An upper bound, never a result."""
    hw = (truth.shape[0], truth.shape[1])
    masks = [mask_at_source(one.region.logits, hw) for one in made.masks]
    return max(masks, key=lambda mask: iou(mask, truth), default=np.zeros(hw, np.bool_))
