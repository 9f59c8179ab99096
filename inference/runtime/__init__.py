"""`open_predictor(name)`: the one door dicom_node uses; ONNX Runtime is loaded when it is called."""

import importlib
from collections.abc import Callable

from inference.contract import Predictor
from inference.errors import PackageInvalid
from inference.runtime.model_repository import (
    ModelInfo,
    ModelPackage,
    describe_package,
    open_package,
    package_names,
)
from inference.settings import InferenceSettings

__all__ = ["FAMILIES", "ModelInfo", "list_models", "open_predictor", "predictor_class"]

# family in model.toml -> (module, class), imported on demand
FAMILIES: dict[str, tuple[str, str]] = {
    "sim4seg": ("inference.runtime.predictors", "Sim4SegPredictor"),
    "prs_med": ("inference.runtime.prs_med", "PrsMedPredictor"),
    "medseg_r": ("inference.runtime.medseg_r", "MedSegRPredictor"),
    "stub": ("inference.runtime.stub_predictor", "StubPredictor"),
}


def open_predictor(name: str, settings: InferenceSettings) -> Predictor:
    """Verify every file of the model package `name`, load its graphs, check them and run each once.

    Raises
    ------
    ModelNotFound, PackageInvalid, PackageTampered, EngineRejected, OutputInvalid
    """
    package = open_package(settings.model_repository, name)
    predictor: Predictor = predictor_class(package)(package, settings)
    return predictor


def predictor_class(package: ModelPackage) -> Callable[..., Predictor]:
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
    found: Callable[..., Predictor] = getattr(importlib.import_module(module), class_name)
    return found


def list_models(settings: InferenceSettings) -> list[ModelInfo]:
    """Every package of the model repository, broken ones with their problem, sorted by name."""
    repository = settings.model_repository
    return [describe_package(repository, name) for name in package_names(repository)]
