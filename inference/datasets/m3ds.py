"""M3DS (Sim4Seg): images, masks, diagnosis chain of thought.

The paper's M3DS cannot be obtained; this is the same view - query, image, mask, reasoned answer -
of the data sets in `data/train`. Answers are not written by a language model: each sentence is
computed from the mask, the pixels and the label (measure.py), after augmentation.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from inference.datasets.splits import HELD_OUT_SHARE, check_no_leakage, held_out


@dataclass(frozen=True)
class Kind:
    """What holds for every image of one data set."""

    modality: str  # a key of inference.prompts.TARGETS
    has_diagnosis: bool
    is_colour: bool
    any_rotation: bool  # no fixed up and down, so every rotation and flip is a fair image
    queries: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """One row of the manifest."""

    dataset: str
    split: str  # train | val
    name: str
    image: Path
    mask: Path | None
    diagnosis: str | None  # one of inference.prompts.DIAGNOSES
    patient: str  # empty where unknown


GENERIC_QUERIES: tuple[str, ...] = (
    "Segment the lesion and give a diagnosis.",
    "Can you identify abnormalities in this image and suggest a possible diagnosis?",
    "Please segment the target in this image and explain what you see.",
    "Outline what is relevant and describe it.",
    "Segment and diagnose.",
    "What does this image show? Please mark it.",
    "Find the region of interest, describe it and conclude.",
    "Please analyse this image.",
)

KINDS: dict[str, Kind] = {
    "busbra": Kind(
        "breast ultrasound image",
        has_diagnosis=True,
        is_colour=False,
        any_rotation=False,
        queries=(
            (
                "Could you help me identify the tumor in the breast ultrasound?"
                " Is the tumor benign or malignant?"
            ),
            "Please segment the breast lesion and tell me whether it is benign or malignant.",
            "Outline the breast mass and give a diagnosis.",
            "Is this breast lesion benign or malignant? Show me where it is.",
            "Delineate the mass in this breast ultrasound.",
            "Where is the lesion in this ultrasound of the breast?",
            "Mark the lesion, describe its shape and margin, and conclude.",
            "Segment the tumour and assess whether it is malignant.",
            "Does this breast sonogram show a suspicious mass? Please outline it.",
            "Segment the breast lesion.",
        ),
    ),
    "sunnybrook_cmr": Kind(
        "cardiac magnetic resonance image",
        has_diagnosis=False,
        is_colour=False,
        any_rotation=True,  # the heart lies at another angle in every patient
        queries=(
            "Segment the left ventricle.",
            "Please outline the left ventricular cavity in this short-axis slice.",
            "Where is the left ventricular cavity in this cardiac MR?",
            "Delineate the endocardial border of the left ventricle.",
            "Mark the blood pool of the left ventricle.",
            "Could you segment the left ventricular cavity in this image?",
            "Outline the LV cavity for volumetry.",
            "Segment the LV blood pool in this short-axis cine frame.",
        ),
    ),
    "fracatlas": Kind(
        "bone radiograph",
        has_diagnosis=True,
        is_colour=False,
        any_rotation=False,
        queries=(
            "Would you be able to segment the disease area in this X-ray? Please identify the disease shown.",
            "Is there a fracture in this radiograph? Outline it.",
            "Please mark the fracture if there is one.",
            "Does this X-ray show a broken bone?",
            "Segment the fracture and give a diagnosis.",
            "Check this bone radiograph for a fracture.",
            "Where is the fracture in this X-ray?",
            "Look for a fracture line and outline the region.",
        ),
    ),
    "kvasirseg": Kind(
        "colonoscopy image",
        has_diagnosis=True,
        is_colour=True,
        any_rotation=True,
        queries=(
            "Segment the polyp.",
            "Is there a polyp in this colonoscopy frame? Please outline it.",
            "Please delineate the polyp and describe it.",
            "Where is the polyp in this endoscopic image?",
            "Find and mark the polyp in this colonoscopy image.",
            "Could you segment the abnormal tissue in this endoscopy image and name it?",
            "Outline the lesion on the colon wall and give a diagnosis.",
            "What lesion is shown in this colonoscopy image? Segment it.",
        ),
    ),
    "lidc_patch": Kind(
        "chest computed tomography image",
        has_diagnosis=True,
        is_colour=False,
        any_rotation=True,
        queries=(
            "Segment the lung nodule.",
            "Please outline the pulmonary nodule in this CT.",
            "Is there a nodule in this chest CT? Show me where.",
            "Delineate the nodule and describe its margin.",
            "Where is the nodule in this lung CT patch?",
            "Mark the pulmonary nodule and give a diagnosis.",
            "Could you segment the nodule in this chest CT image?",
            "Find the lung nodule and describe it.",
        ),
    ),
    "isic2017_cls": Kind(
        "dermoscopy image",
        has_diagnosis=True,
        is_colour=True,
        any_rotation=True,
        queries=(
            "Which kind of skin disease is shown in the image?",
            "Is this skin lesion a melanoma?",
            "Please assess this dermoscopy image for melanoma.",
            "Melanoma or not?",
            "Give a diagnosis for this pigmented skin lesion.",
            "Could this mole be a melanoma?",
            "Classify the skin lesion in this dermoscopic image.",
            "Does this dermoscopy image show a malignant melanoma?",
        ),
    ),
    "usgra_nerve": Kind(
        "peripheral nerve ultrasound image",
        has_diagnosis=False,
        is_colour=False,
        any_rotation=False,
        queries=(
            "Segment the nerve.",
            "Please outline the nerve in this ultrasound image.",
            "Where is the nerve in this ultrasound?",
            "Delineate the peripheral nerve for a regional block.",
            "Mark the nerve bundle in this image.",
            "Could you segment the nerve structure?",
            "Find the nerve before needle placement.",
            "Outline the nerve in cross-section.",
        ),
    ),
}


def load_records(root: Path) -> list[Record]:
    """Read `root/train/manifest.csv`; hold patients out where it has no validation rows.

    A training row whose image is also a validation row's is left out.

    Raises
    ------
    SplitError
        If a patient stands on both sides.
    """
    with (root / "train" / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] in KINDS]
    kept_back = {
        dataset: held_out(dataset, [_owner(row) for row in rows if row["dataset"] == dataset])
        for dataset in HELD_OUT_SHARE
    }
    records = [_record(root, row, kept_back.get(row["dataset"], frozenset())) for row in rows]
    # The manifest names the images of all 100 Kvasir validation rows as training images too.
    shown = {record.image for record in records if record.split == "val"}
    records = [record for record in records if record.split == "val" or record.image not in shown]
    check_no_leakage(records)
    return records


def _owner(row: dict[str, str]) -> str:
    return row["patient"] or row["id"]


def _record(root: Path, row: dict[str, str], kept_back: frozenset[str]) -> Record:
    has_region = bool(row["mask"]) and row["label"] != "no fracture"
    return Record(
        dataset=row["dataset"],
        split="val" if _owner(row) in kept_back else row["split"],
        name=row["id"],
        image=root / row["image"],
        mask=root / row["mask"] if has_region else None,
        diagnosis=row["label"] if KINDS[row["dataset"]].has_diagnosis else None,
        patient=row["patient"],
    )
