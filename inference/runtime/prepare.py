"""Tries the engines that this machine can run beside the plain one; refuses what differs, keeps the best."""

import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnxruntime as ort

from inference.contract import Image, Prompt
from inference.errors import EngineRejected, InferenceError, PackageInvalid
from inference.runtime import predictor_class
from inference.runtime.engine_plan import PLAIN, EnginePlan, candidates
from inference.runtime.gate import compare
from inference.runtime.installation import require_one_build
from inference.runtime.model_repository import ModelPackage, open_package
from inference.runtime.onnx_engine import OnnxEngine, SessionExtras, available_cores
from inference.runtime.packaged import PackagedPredictor
from inference.runtime.prepared import (
    BUILT,
    GRAPHS,
    Evidence,
    Prepared,
    Trial,
    folder_of,
    identity_of,
    write_evidence,
)
from inference.runtime.serving import on_plan
from inference.settings import InferenceSettings

# What is no more than this slower than the quickest counts as equal to it: times differ from run to run.
EQUAL = 1.03


@dataclass(frozen=True)
class Ordeal:
    """What every candidate is asked; the first image is the one that is timed."""

    images: Sequence[Image]
    prompt: Prompt
    rounds: int = 5


def prepare(name: str, settings: InferenceSettings, ordeal: Ordeal) -> Prepared:
    """Build, warm, gate and measure every candidate for the model package `name`; keep the winner's evidence.

    Raises
    ------
    ModelNotFound, PackageInvalid, PackageTampered, EngineRejected, OutputInvalid
        If there is no such package, or not even the plain engine runs.
    """
    require_one_build()
    package = open_package(settings.model_repository, name)
    folder = folder_of(name, identity_of(package, settings), settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        evidence = _Workshop(package, settings, ordeal, draft).work()
        write_evidence(draft, evidence)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Prepared(folder, evidence)


@dataclass(frozen=True)
class _Workshop:
    """One package being prepared; what is made lies in `draft`."""

    package: ModelPackage
    settings: InferenceSettings
    ordeal: Ordeal
    draft: Path

    def work(self) -> Evidence:
        plain = self._open(PLAIN)
        files = self._save_graphs()
        plans = candidates(ort.get_available_providers(), available_cores())
        trials = tuple(self._try(plan, plain) for plan in plans)
        winner = choose(trials)
        if not winner.is_saved:
            shutil.rmtree(self.draft / GRAPHS)
        return Evidence(
            model=self.package.manifest.model.name,
            version=self.package.manifest.model.version,
            identity=identity_of(self.package, self.settings),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            rounds=self.ordeal.rounds,
            trials=trials,
            winner=winner,
            files=files if winner.is_saved else {},
        )

    def _save_graphs(self) -> dict[str, str]:
        """Optimise every graph for this processor and save it; its sha256 by name."""
        folder, saved = self.draft / GRAPHS, {}
        folder.mkdir()
        for name in (each for each in self.package.manifest.files if each.endswith(".onnx")):
            OnnxEngine(name, self.package.read(name), extras=SessionExtras(save_to=folder / name))
            saved[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        return saved

    def _try(self, plan: EnginePlan, plain: PackagedPredictor) -> Trial:
        started = time.perf_counter()
        try:
            candidate = self._open(plan)
            open_s = time.perf_counter() - started
            gate = compare(candidate, plain, self.ordeal.images, self.ordeal.prompt)
            ours, theirs = _times(candidate, plain, self.ordeal)
        except InferenceError as error:
            return Trial(plan=plan, refused=str(error))
        return Trial(
            plan=plan,
            open_s=round(open_s, 4),
            median_s=round(statistics.median(ours), 5),
            plain_median_s=round(statistics.median(theirs), 5),
            gate=gate,
            refused=gate.refusal,
        )

    def _open(self, plan: EnginePlan) -> PackagedPredictor:
        """A predictor without memory of images: what is measured must run."""
        built = self.draft / BUILT / plan.slug
        built.mkdir(parents=True, exist_ok=True)
        opener = on_plan(self.settings, plan, lambda name: (self.draft / GRAPHS / name).read_bytes(), built)
        opened = predictor_class(self.package)(self.package, self.settings, open_engine=opener)
        if not isinstance(opened, PackagedPredictor):
            raise PackageInvalid(f"{opened.name} has no graphs: there is nothing to prepare.")
        return opened


def choose(trials: Sequence[Trial]) -> EnginePlan:
    """The quickest plan beside the plain engine; of equals one that does not spin, then the first to open.

    Raises
    ------
    EngineRejected
        If all were refused.
    """
    admitted = [trial for trial in trials if trial.refused is None]
    if not admitted:
        raise EngineRejected(f"not even the plain engine runs: {trials[0].refused}")
    best = min(_share(trial) for trial in admitted)
    equal = [trial for trial in admitted if _share(trial) <= best * EQUAL]
    return min(equal, key=lambda trial: (trial.plan.is_spinning, trial.open_s or 0.0)).plan


def _share(trial: Trial) -> float:
    """Its time, of the plain engine's in the same minutes."""
    return (trial.median_s or 0.0) / (trial.plain_median_s or 1.0)


def _times(
    candidate: PackagedPredictor, plain: PackagedPredictor, ordeal: Ordeal
) -> tuple[list[float], list[float]]:
    """Seconds of both by turns, so that they meet the same neighbours."""
    ours, theirs = [], []
    for _ in range(ordeal.rounds):
        ours.append(candidate.predict(ordeal.images[0], ordeal.prompt).seconds["total"])
        theirs.append(plain.predict(ordeal.images[0], ordeal.prompt).seconds["total"])
    return ours, theirs
