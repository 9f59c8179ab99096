"""Any folder in the form of `data/train`, read for scoring: a manifest.csv and the images it names.

    split,dataset,id,image,mask,w,h,modality,organ,label,finding,target,patient,licence,extra

`image` and `mask` are paths below the folder or below its parent (as in `data/train`); the columns `dataset`,
`id` and `image` must be there. A row without a mask says nothing about masks; a mask that is empty says that
there is nothing to outline. A row without a label, or with one outside the closed diagnoses, is not scored
for diagnosis. Data sets may be others than the training's: their kind comes from modality and organ.
"""

import csv
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.datasets.m3ds import GENERIC_QUERIES, KINDS
from inference.datasets.splits import HELD_OUT_SHARE, hash_order, held_out
from inference.prompts import DIAGNOSES, TARGETS

TRAIN = "train"
# (modality of the manifest, words of organ or target) -> modality phrase; the first that fits
KNOWN_KINDS: tuple[tuple[Collection[str], Collection[str], str], ...] = (
    ({"us", "ultrasound"}, {"breast"}, "breast ultrasound image"),
    ({"us", "ultrasound"}, {"nerve"}, "peripheral nerve ultrasound image"),
    ({"mr", "mri"}, {"heart", "cardiac", "ventricle"}, "cardiac magnetic resonance image"),
    (
        {"cr/dx", "cr", "dx", "xr", "x-ray", "xray"},
        {"leg", "hand", "hip", "shoulder", "bone", "arm", "elbow", "wrist", "finger", "humerus", "forearm"},
        "bone radiograph",
    ),
    ({"es", "endoscopy", "colonoscopy"}, {"colon", "polyp"}, "colonoscopy image"),
    ({"ct"}, {"lung", "chest"}, "chest computed tomography image"),
    ({"derm", "dermoscopy"}, {"skin"}, "dermoscopy image"),
)
# What other data sets call what we call so, by modality phrase.
SYNONYMS: dict[str, dict[str, str]] = {
    "bone radiograph": {"fractured": "fracture", "normal": "no fracture", "not fractured": "no fracture"},
    "dermoscopy image": {
        "nevus": "not melanoma",
        "naevus": "not melanoma",
        "seborrheic keratosis": "not melanoma",
        "benign": "not melanoma",
        "malignant": "melanoma",
    },
    "chest computed tomography image": {"nodule": "lung nodule"},
}


class ManifestError(Exception):
    """The folder's manifest.csv cannot be used; the sentence says why."""


@dataclass(frozen=True)
class Case:
    """One image to be scored."""

    dataset: str
    name: str
    image: Path
    mask: Path | None  # None where nothing is known of a mask
    label: str | None  # one of inference.prompts.DIAGNOSES
    told_label: str  # as the manifest has it
    patient: str
    modality: str | None  # a key of TARGETS, where the kind is one the models know
    target: str

    @property
    def query(self) -> str:
        """The question put to Sim4Seg: the first wording of the kind, else one for any image."""
        for kind in KINDS.values():
            if kind.modality == self.modality:
                return kind.queries[0]
        return GENERIC_QUERIES[0]

    @property
    def position_query(self) -> str:
        """The question put to PRS-Med."""
        return f"Where is the {self.target or 'lesion'} in this {self.modality or 'image'}?"


def load_cases(folder: Path, split: str = "auto", limit: int | None = None) -> list[Case]:
    """The rows of `folder`/manifest.csv that are to be scored.

    `split` "auto" takes every row that is not of the training split, and of a data set that has nothing but
    training rows the patients this project holds out; a folder of nothing but training rows of unknown sets
    is taken whole. Any other word takes the rows of that split. `limit` takes so many of each data set,
    picked by the hash of their names.

    Raises
    ------
    ManifestError
        If there is no manifest, or it lacks a column or an image.
    """
    rows = read_rows(folder)
    wanted = [row for row in rows if _is_scored(row, rows, split)]
    cases = [_case(folder, row) for row in wanted]
    if not cases:
        raise ManifestError(f"{folder} has no row to score with split {split!r}; try --split train")
    return cases if limit is None else some_of_each(cases, limit)


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Every row of `folder`/manifest.csv; columns that are missing are empty.

    Raises
    ------
    ManifestError
    """
    path = folder / "manifest.csv"
    if not path.is_file():
        raise ManifestError(f"{path} is not there; name the folder that holds manifest.csv")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lacking = {"dataset", "id", "image"} - set(reader.fieldnames or ())
        if lacking:
            raise ManifestError(f"{path} lacks the columns {', '.join(sorted(lacking))}")
        rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    if not rows:
        raise ManifestError(f"{path} has no rows")
    return rows


def _is_scored(row: dict[str, str], rows: Sequence[dict[str, str]], split: str) -> bool:
    own = row.get("split", "")
    if split != "auto":
        return own == split
    if own != TRAIN:
        return True
    siblings = [other for other in rows if other["dataset"] == row["dataset"]]
    if any(other.get("split", "") != TRAIN for other in siblings):
        return False
    if row["dataset"] not in HELD_OUT_SHARE:
        return row["dataset"] not in KINDS
    return _owner(row) in held_out(row["dataset"], (_owner(other) for other in siblings))


def _owner(row: dict[str, str]) -> str:
    return row.get("patient", "") or row["id"]


def _case(folder: Path, row: dict[str, str]) -> Case:
    modality = modality_of(row)
    told = row.get("label", "")
    return Case(
        dataset=row["dataset"],
        name=row["id"],
        image=_find(folder, row["image"]),
        mask=_find(folder, row["mask"]) if row.get("mask") else None,
        label=closed_label(told, modality),
        told_label=told,
        patient=row.get("patient", ""),
        modality=modality,
        target=(TARGETS[modality] if modality else "") or row.get("target", ""),
    )


def modality_of(row: dict[str, str]) -> str | None:
    """The modality phrase of a manifest row; None where it is of no kind the models know."""
    if row["dataset"] in KINDS:
        return KINDS[row["dataset"]].modality
    organ = f"{row.get('organ', '')} {row.get('target', '')}".lower().replace("+", " ")
    for modalities, words, phrase in KNOWN_KINDS:
        if row.get("modality", "").lower() in modalities and any(word in organ for word in words):
            return phrase
    return None


def closed_label(told: str, modality: str | None) -> str | None:
    """The closed diagnosis that a manifest's label means for this kind of image; None where none does."""
    kinds = [kind for kind in KINDS.values() if kind.modality == modality]
    if any(not kind.has_diagnosis for kind in kinds):
        return None
    label = told.lower()
    label = SYNONYMS.get(modality or "", {}).get(label, label)
    return label if label in DIAGNOSES else None


def _find(folder: Path, name: str) -> Path:
    for root in (folder, folder.parent):
        if (root / name).is_file():
            return root / name
    raise ManifestError(f"{name} of the manifest is neither below {folder} nor below its parent")


def some_of_each(cases: Iterable[Case], limit: int) -> list[Case]:
    """At most `limit` cases of each data set, picked by the hash of their names."""
    by_dataset: dict[str, dict[str, Case]] = {}
    for case in cases:
        by_dataset.setdefault(case.dataset, {})[case.name] = case
    return [found[name] for found in by_dataset.values() for name in hash_order(found)[:limit]]
