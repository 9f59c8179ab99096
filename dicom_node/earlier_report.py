"""5 PREPROCESS. What a radiologist has already said of the study: its own SR, else its descriptions.

It is for models that can read a report (MedSeg-R). Only words of a closed vocabulary (inference/reports.py)
leave this file: nothing a tag says reaches a model as it stands.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread

from dicom_node.frames import UNDECODABLE
from inference.reports import closed_words

LOG = logging.getLogger(__name__)
MAX_FILE_BYTES: Final = 1 << 20  # a report is text: what is larger is not read
MAX_CHARACTERS: Final = 20_000
MAX_DEPTH: Final = 16  # of the content tree
DESCRIPTIONS: Final = ("StudyDescription", "SeriesDescription", "ImageComments")


def earlier_report(reports: list[Path], image: Dataset) -> str:
    """What the newest of the study's reports that has any text says, else the descriptions of `image`.

    Parameters
    ----------
    reports : files of the study's Structured Reports that this node did not make
    image : header of an image that is to be analysed

    Returns
    -------
    Closed words only; "" where there are none. A report that cannot be read is passed over.
    """
    told = sorted((said for path in reports if (said := _told(path))[1]), reverse=True)
    return closed_words(told[0][1] if told else _described(image))


def _told(path: Path) -> tuple[str, str]:
    """When a report was made (DA and TM, comparable as text), and its text."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return "", ""
        report = dcmread(path, stop_before_pixels=True)
        made = f"{report.get('ContentDate', '')}{report.get('ContentTime', '')}"
        return made, " ".join(_texts(report, MAX_DEPTH))[:MAX_CHARACTERS]
    except UNDECODABLE as error:
        LOG.warning("an earlier report cannot be read and is passed over (%s)", type(error).__name__)
        return "", ""


def _texts(item: Dataset, depth: int) -> Iterator[str]:
    """The TEXT and CODE values of a content tree (PS3.3 C.17.3), in the order of reading."""
    if item.get("ValueType") == "TEXT":
        yield str(item.get("TextValue", ""))
    if item.get("ValueType") == "CODE" and item.get("ConceptCodeSequence"):
        yield str(item.ConceptCodeSequence[0].get("CodeMeaning", ""))
    if depth:
        for child in item.get("ContentSequence") or ():
            yield from _texts(child, depth - 1)


def _described(image: Dataset) -> str:
    said = (str(image.get(keyword) or "").strip() for keyword in DESCRIPTIONS)
    return ". ".join(filter(None, said))[:MAX_CHARACTERS]
