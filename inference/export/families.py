"""What differs from family to family when weights become a package: class, graphs, predictor, limits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from inference.export.graphs import ExportSpec
from inference.export.more_graphs import medseg_r_specs, prs_med_specs
from inference.export.to_onnx import sim4seg_specs
from inference.export.weights import SMALLEST_INT8
from inference.models import medseg_r, prs_med, sim4seg
from inference.models.checkpoints import load_into, load_tensors, with_prefix
from inference.prompts import DIAGNOSES
from inference.runtime.medseg_r import MedSegRPredictor
from inference.runtime.predictors import Sim4SegPredictor
from inference.runtime.prs_med import PrsMedPredictor

AnyPredictor = Sim4SegPredictor | PrsMedPredictor | MedSegRPredictor


@dataclass(frozen=True)
class Family:
    """One kind of package; `name` is model.toml's family."""

    name: str
    build: Callable[[int], nn.Module]  # of top_k
    specs: Callable[[Any], dict[str, ExportSpec]]
    predictor: type[AnyPredictor]
    top_k: int
    diagnoses: tuple[str, ...]
    smallest_int8: int = SMALLEST_INT8  # elements of a weight that is stored in 8 bits

    def load(self, weights: Path, top_k: int | None = None) -> nn.Module:
        """The small model from a training checkpoint; what only training needed is left behind.

        Raises
        ------
        CheckpointError
        """
        model = self.build(self.top_k if top_k is None else top_k).eval()
        load_into(model, with_prefix(load_tensors(weights)[0], "model."))
        return model


# The three shipped packages together must stay below 80 MB: the second stores more in 8 bits.
FAMILIES: dict[str, Family] = {
    "sim4seg": Family(
        "sim4seg",
        lambda top_k: sim4seg.Sim4Seg(replace(sim4seg.SMALL, top_k=top_k)),
        sim4seg_specs,
        Sim4SegPredictor,
        36,
        DIAGNOSES,
    ),
    "prs_med": Family(
        "prs_med", lambda _: prs_med.PrsMed(prs_med.SMALL), prs_med_specs, PrsMedPredictor, 0, (), 60_000
    ),
    "medseg_r": Family(
        "medseg_r", lambda _: medseg_r.MedSegR(medseg_r.SMALL), medseg_r_specs, MedSegRPredictor, 0, ()
    ),
}
