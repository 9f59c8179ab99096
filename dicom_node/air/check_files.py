"""The check of `gate.py` on files: each object of a result by itself, and towards the images beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.air.gate import check, check_together
from dicom_node.air.rules import OTHER_FORMS, SEG_CLASSES, SR_CLASSES
from dicom_node.frames import UNDECODABLE
from dicom_node.product import is_own_result


@dataclass(frozen=True)
class Checked:
    """A file, or the files together, and what breaks a rule."""

    name: str
    broken: tuple[str, ...]


def check_files(paths: Sequence[Path]) -> list[Checked]:
    """One entry an object of a result, and one for each study whose images are among the files.

    Every SEG and SR is such an object; pictures, presentation states, key objects and PDFs are where we made
    them.
    """
    checked: list[Checked] = []
    results: list[Dataset] = []
    sources: list[Dataset] = []
    for path in paths:
        try:
            header = dcmread(path, stop_before_pixels=True)
            is_result = _is_result(header)
            dataset = dcmread(path) if is_result else header
        except UNDECODABLE as error:
            checked.append(Checked(str(path), (f"cannot be read as DICOM ({type(error).__name__})",)))
            continue
        (results if is_result else sources).append(dataset)
        if is_result:
            checked.append(Checked(str(path), tuple(map(str, check(dataset)))))
    return checked + _together(results, sources)


def _is_result(header: Dataset) -> bool:
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in OTHER_FORMS:
        return is_own_result(str(header.get("Modality") or ""), str(header.get("Manufacturer") or ""))
    return sop_class in SEG_CLASSES | SR_CLASSES


def _together(results: Sequence[Dataset], sources: Sequence[Dataset]) -> list[Checked]:
    """The rules between objects, once each object keeps its own."""
    entries = []
    for uid in dict.fromkeys(str(source.get("StudyInstanceUID")) for source in sources):
        ours = [each for each in results if str(each.get("StudyInstanceUID")) == uid]
        images = [each for each in sources if str(each.get("StudyInstanceUID")) == uid]
        if ours and not any(check(each) for each in ours):
            broken = tuple(map(str, check_together(ours, images)))
            entries.append(Checked(f"{len(ours)} results with {len(images)} images", broken))
    return entries
