"""Prepares engines before a node starts: what can run the models here, what of it is right, which is best."""

from collections.abc import Sequence

import numpy as np

from dicom_node.display import to_display
from dicom_node.samples import SAMPLES
from dicom_node.settings import NodeSettings
from inference.contract import Image, Prompt
from inference.runtime.prepare import Ordeal, prepare
from inference.runtime.prepared import Evidence, Prepared, Trial

QUERY = "Is there a lesion in this image, and is it malignant?"


def prepare_models(settings: NodeSettings, models: Sequence[str], rounds: int) -> list[Prepared]:
    """Prepare every model package named, or those of the rules.

    Raises
    ------
    InferenceError
        If a package is missing or broken, or not even its plain engine runs.
    """
    names = sorted(set(models) or {route.model for route in settings.routes})
    ordeal = Ordeal(sample_images(), Prompt(QUERY), rounds)
    return [prepare(name, settings.inference, ordeal) for name in names]


def sample_images() -> list[Image]:
    """The middle frame of each synthetic study, as a model gets it."""
    middle = [sample.datasets[len(sample.datasets) // 2] for sample in (make() for make in SAMPLES.values())]
    shown = [to_display(dataset.pixel_array, dataset) for dataset in middle]
    return [Image(np.repeat(grey[..., None], 3, axis=2)) for grey in shown]


def evidence_of(made: Sequence[Prepared]) -> list[dict[str, object]]:
    """What was tried, for machines."""
    return [each.evidence.model_dump(mode="json") for each in made]


def text_of(made: Sequence[Prepared]) -> str:
    """What was tried for each model, which of it will serve, and where it lies, for people."""
    return "\n".join(f"{_table_of(each.evidence)}\n  kept in {each.folder}" for each in made)


def _table_of(evidence: Evidence) -> str:
    identity = evidence.identity
    device = identity.device.partition(" avx")[0]
    head = (
        f"{evidence.model} {evidence.version} on {device}, {identity.cores} cores, "
        f"ONNX Runtime {identity.onnxruntime}:"
    )
    columns = f"  {'ENGINE':<24}{'OPENS':>9}{'IMAGE':>10}{'PLAIN':>10}"
    return "\n".join([head, columns, *(_line(trial, evidence) for trial in evidence.trials)])


def _line(trial: Trial, evidence: Evidence) -> str:
    word = trial.refused or ("serves" if trial.plan == evidence.winner else "")
    if trial.open_s is None or trial.median_s is None or trial.plain_median_s is None:
        return f"  {trial.plan.name:<24}{'-':>9}{'-':>10}{'-':>10}  refused: {word}"
    times = f"{trial.open_s:>7.2f} s{1000 * trial.median_s:>7.1f} ms{1000 * trial.plain_median_s:>7.1f} ms"
    return f"  {trial.plan.name:<24}{times}  {'refused: ' if trial.refused else ''}{word}".rstrip()
