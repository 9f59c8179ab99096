"""Image + report + mask sets for MedSeg-R.

No data set here comes with reports, so each report is computed from the truth's mask, as the M3DS view's
answers are. That is a leak by design: "location" and "shape" tell where the mask is and how it runs, and a
score with them measures how well the model obeys, not how well it sees. `LEAKS` says which field leaks
what, `leave_out` takes fields away, and whatever is reported as accuracy is reported without any.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from tokenizers import Tokenizer
from torch import Tensor

from inference.datasets.m3ds import KINDS
from inference.datasets.measure import measure
from inference.datasets.sample import Sample
from inference.reports import FIELDS, Priors, encode_priors, priors_of, write_report

LEAKS: dict[str, str] = {
    "location": "the centroid of the true mask",
    "texture": "the grey levels under the true mask",
    "shape": "the outline of the true mask",
}
NOTHING = Priors()


@dataclass(frozen=True)
class Report:
    """A short report and what it states; fields that are missing are None."""

    text: str
    priors: Priors


@dataclass(frozen=True)
class Missing:
    """How often a training sample loses its report, and each field of one that it keeps; ours."""

    report: float = 0.5
    field: float = 0.25


def report_of(sample: Sample, leave_out: Collection[str] = ()) -> Report:
    """The report of a sample as it now looks, without the fields of `leave_out`.

    Raises
    ------
    ValueError
        If `leave_out` names a field that there is not.
    """
    if unknown := set(leave_out) - set(FIELDS):
        raise ValueError(f"a report has {', '.join(FIELDS)}, not {', '.join(sorted(unknown))}")
    modality = KINDS[sample.record.dataset].modality
    known = NOTHING
    if sample.mask.any():
        known = priors_of(measure(sample.mask, sample.pixels, modality, sample.record.diagnosis))
    priors = known.without(*leave_out)
    return Report(write_report(modality, priors), priors)


def lost_fields(rng: Generator, missing: Missing, leave_out: Collection[str] = ()) -> set[str]:
    """The fields that a training sample is not told, drawn at random, so that the model works without."""
    if rng.random() < missing.report:
        return set(FIELDS)
    return {*leave_out, *(name for name in FIELDS if rng.random() < missing.field)}


def shuffled(priors: Sequence[Priors], seed: int = 0) -> list[Priors]:
    """Each image gets another one's priors: whatever they helped must be gone then."""
    order = np.random.default_rng(seed).permutation(len(priors))
    givers = np.empty_like(order)
    givers[order] = np.roll(order, 1)  # one cycle, so that nobody keeps his own
    return [priors[giver] for giver in givers]


def prior_batch(priors: Sequence[Priors], tokenizer: Tokenizer) -> Tensor:
    """(B, 3, P) int64 token ids; a missing field is all 0."""
    return torch.as_tensor(np.stack([encode_priors(one, tokenizer) for one in priors]))
