"""Objects as a viewer makes them from ours: a SEG as OHIF 3.13 saves it, a report of measurements."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
BINARY = "1.2.840.10008.5.1.4.1.1.66.4"
PERSON = "Reader^Rosa"
Masks = Mapping[str, NDArray[np.bool_]]  # by SOP Instance UID of the image


def masks_of(seg: Dataset) -> dict[str, NDArray[np.bool_]]:
    """What a SEG of ours outlines, by image."""
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    return {
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID: frame > 0
        for item, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True)
    }


def saved_by_ohif(
    ours: Dataset, masks: Masks, *, label: str | None = None, is_update: bool = False
) -> Dataset:
    """A LABELMAP in RLE Lossless with OHIF's codes; frames in the other order, a background segment first.

    With `is_update` it is saved into our series and names ours, as OHIF does when a person updates a SEG.
    """
    made = _like(ours, LABEL_MAP, is_update=is_update)
    made.SegmentationType, made.BitsAllocated, made.BitsStored, made.HighBit = "LABELMAP", 8, 8, 7
    name = label or ours.SegmentSequence[0].SegmentLabel
    made.SegmentSequence = [segment(0, "Background"), segment(1, name)]
    made.PerFrameFunctionalGroupsSequence = [_group(uid) for uid in reversed(list(masks))]
    pixels = np.stack([mask.astype(np.uint8) for mask in reversed(list(masks.values()))])
    made.NumberOfFrames, made.PixelData = len(pixels), pixels.tobytes()
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(RLELossless, generate_instance_uid=False)
    return made


def binary_of(ours: Dataset, masks: Masks) -> Dataset:
    """A BINARY SEG with our codes, as other editors save it."""
    made = _like(ours, BINARY, is_update=False)
    made.SegmentSequence = deepcopy(ours.SegmentSequence)
    made.SegmentSequence[0].SegmentLabel = "renamed"
    made.PerFrameFunctionalGroupsSequence = [_group(uid) for uid in masks]
    bits = np.concatenate([mask.reshape(-1) for mask in masks.values()])
    content = np.packbits(bits, bitorder="little").tobytes()
    made.NumberOfFrames, made.PixelData = len(masks), content + bytes(len(content) % 2)
    return made


def _like(ours: Dataset, sop_class: str, *, is_update: bool) -> Dataset:
    made = deepcopy(ours)
    for keyword in ("PredecessorDocumentsSequence", "ContentCreatorName", "ContributingEquipmentSequence"):
        if keyword in made:
            del made[keyword]
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = sop_class
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.ContentCreatorName = PERSON
    if is_update:
        made.InstanceNumber = 2
        made.PredecessorDocumentsSequence = [predecessor(ours)]
    else:
        made.SeriesInstanceUID = generate_uid()
    return made


def predecessor(ours: Dataset) -> Dataset:
    named, series, item = Dataset(), Dataset(), Dataset()
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = ours.SOPClassUID, ours.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = ours.SeriesInstanceUID, [named]
    item.StudyInstanceUID, item.ReferencedSeriesSequence = ours.StudyInstanceUID, [series]
    return item


def segment(number: int, label: str) -> Dataset:
    """A segment as OHIF describes it, whatever it shows."""
    tissue = Dataset()
    tissue.CodeValue, tissue.CodingSchemeDesignator, tissue.CodeMeaning = "T-D0050", "SRT", "Tissue"
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel = number, label
    item.SegmentAlgorithmType, item.SegmentAlgorithmName = "MANUAL", "OHIF Brush"
    item.SegmentedPropertyCategoryCodeSequence = [tissue]
    item.SegmentedPropertyTypeCodeSequence = [deepcopy(tissue)]
    return item


def _group(source_uid: str) -> Dataset:
    source, derivation, number, item = Dataset(), Dataset(), Dataset(), Dataset()
    source.ReferencedSOPInstanceUID = source_uid
    source.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    derivation.SourceImageSequence = [source]
    number.ReferencedSegmentNumber = 1
    item.DerivationImageSequence = [derivation]
    item.SegmentIdentificationSequence = [number]
    return item


def edited_report(ours: Dataset, changes: Sequence[tuple[str, str]] = ()) -> Dataset:
    """Our report saved again under a UID of its own; `changes` are pairs of old and new text or number."""
    made = deepcopy(ours)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.SeriesInstanceUID = generate_uid()
    made.OperatorsName = PERSON
    for old, new in changes:
        _replace(made, old, new)
    return made


def _replace(item: Dataset, old: str, new: str) -> None:
    for child in item.get("ContentSequence") or ():
        if child.get("TextValue") == old:
            child.TextValue = new
        _replace(child, old, new)
