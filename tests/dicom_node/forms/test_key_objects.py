from pathlib import Path

import highdicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.forms.content import MAX_KEY_IMAGES
from dicom_node.forms.form import Form
from tests import builders, formed


def selection(folder: Path, sources: list[Dataset]) -> Dataset:
    return formed.one(formed.formed(folder, sources, [frozenset({Form.KOS})]), Form.KOS)


def test_highdicom_and_dcmtk_read_the_selection(tmp_path: Path) -> None:
    sources = formed.SOURCES["stack"]()
    made = selection(tmp_path / "in", sources)
    read = highdicom.ko.KeyObjectSelectionDocument.from_dataset(made)
    chosen = {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in read.content.get_references()
    }
    assert len(chosen) == MAX_KEY_IMAGES
    assert chosen <= {str(source.SOPInstanceUID) for source in sources}
    text = builders.report_text(tmp_path, made)
    assert '(113000,DCM,"Of Interest")' in text
    assert "Diagnosis: benign (confidence 0.88). Research use only. Not a medical device." in text
    assert text.count("contains IMAGE") == MAX_KEY_IMAGES


def test_the_key_frame_is_among_them(tmp_path: Path) -> None:
    masks = [formed.ellipse(4 + (number == 7)) for number in range(40)]
    stack = builders.make_stack(masks)
    result = formed.formed(tmp_path, stack, [frozenset({Form.KOS})])
    key = str(result.findings.key.source.SOPInstanceUID)
    assert key == str(stack[7].SOPInstanceUID)
    named = {
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in formed.one(result, Form.KOS).ContentSequence
        if item.ValueType == "IMAGE"
    }
    assert key in named
    assert len(named) == MAX_KEY_IMAGES


@pytest.mark.parametrize(("kind", "frames"), [("clip", [1, 2, 3]), ("enhanced", [1, 2])])
def test_frames_of_one_instance_are_named_together(tmp_path: Path, kind: str, frames: list[int]) -> None:
    sources = formed.SOURCES[kind]()
    made = selection(tmp_path, sources)
    (image,) = [item for item in made.ContentSequence if item.ValueType == "IMAGE"]
    (reference,) = image.ReferencedSOPSequence
    assert reference.ReferencedSOPClassUID == sources[0].SOPClassUID
    assert sorted(reference.ReferencedFrameNumber) == frames


def test_it_rejects_nothing(tmp_path: Path) -> None:
    """Its title must never be one of those that hide images."""
    from storage.notes import REJECTION_CODES

    made = selection(tmp_path, formed.SOURCES["ultrasound"]())
    assert made.ConceptNameCodeSequence[0].CodeValue not in REJECTION_CODES
