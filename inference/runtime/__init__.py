"""`open_predictor(name)`: the one door dicom_node uses; ONNX Runtime is loaded when it is called."""

import importlib
from typing import Protocol

from inference.contract import Predictor
from inference.errors import PackageInvalid
from inference.runtime.model_repository import (
    ModelInfo,
    ModelPackage,
    describe_package,
    open_package,
    package_names,
)
from inference.runtime.sim4seg_graphs import OpenEngine
from inference.settings import InferenceSettings

__all__ = ["FAMILIES", "ModelInfo", "list_models", "open_predictor", "predictor_class"]

SCALABLE = "sim4seg"  # the family whose answers can be drawn several times

# family in model.toml -> (module, class), imported on demand
FAMILIES: dict[str, tuple[str, str]] = {
    "sim4seg": ("inference.runtime.predictors", "Sim4SegPredictor"),
    "prs_med": ("inference.runtime.prs_med", "PrsMedPredictor"),
    "medseg_r": ("inference.runtime.medseg_r", "MedSegRPredictor"),
    "stub": ("inference.runtime.stub_predictor", "StubPredictor"),
}


class PredictorClass(Protocol):
    """Opens packages of one family."""

    def __call__(
        self, package: ModelPackage, settings: InferenceSettings, *, open_engine: OpenEngine | None = None
    ) -> Predictor:
        """Open a package plainly, or with engines of one's own: to measure, to compare."""
        ...

    def served(self, package: ModelPackage, settings: InferenceSettings) -> Predictor:
        """Open a package as a node does."""
        ...


def open_predictor(name: str, settings: InferenceSettings) -> Predictor:
    """Verify every file of the model package `name`, load its graphs, check them and run each once.

    With several `reasoning_paths` a Sim4Seg package answers by test-time scaling.

    Raises
    ------
    ModelNotFound, PackageInvalid, PackageTampered, EngineRejected, OutputInvalid
    """
    package = open_package(settings.model_repository, name)
    predictor = predictor_class(package).served(package, settings)
    if settings.reasoning_paths == 1 or package.manifest.model.family != SCALABLE:
        return predictor
    scaling = importlib.import_module("inference.runtime.scaling")
    scaled: Predictor = scaling.scaled(predictor, settings)
    return scaled


def predictor_class(package: ModelPackage) -> PredictorClass:
    """The class that runs packages of this family.

    Raises
    ------
    PackageInvalid
        If this version does not know the family.
    """
    family = package.manifest.model.family
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        name = package.manifest.model.name
        raise PackageInvalid(
            f"{name} is of the family {family!r}; this version runs {known}. Update the node."
        )
    module, class_name = FAMILIES[family]
    found: PredictorClass = getattr(importlib.import_module(module), class_name)
    return found


def list_models(settings: InferenceSettings) -> list[ModelInfo]:
    """Every package of the model repository, broken ones with their problem, sorted by name."""
    repository = settings.model_repository
    return [describe_package(repository, name) for name in package_names(repository)]
