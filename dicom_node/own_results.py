"""Our own results as encoded data sets, on their way in by the door that images take."""

from io import BytesIO

from pydicom import Dataset, dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.announced import Announced
from storage.records import Origin

OWN_RESULT = "OWN RESULT"


def announced_result(dataset: Dataset, job_id: str) -> Announced:
    """What is known of a result: everything."""
    meta = getattr(dataset, "file_meta", None)
    syntax = meta.TransferSyntaxUID if meta is not None else ExplicitVRLittleEndian
    uids = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(syntax))
    return Announced(*uids, Origin(OWN_RESULT, job_id), is_own_result=True)


def encoded_result(dataset: Dataset, announced: Announced) -> bytes:
    """Encode `dataset` as announced, without meta information."""
    syntax = UID(announced.transfer_syntax_uid)
    buffer = BytesIO()
    dcmwrite(
        buffer,
        _without_meta(dataset),
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=False,
    )
    return buffer.getvalue()


def _without_meta(dataset: Dataset) -> Dataset:
    bare = Dataset()
    bare.update(dataset)
    is_implicit_vr, is_little_endian = dataset.original_encoding
    bare.set_original_encoding(is_implicit_vr, is_little_endian, dataset.original_character_set)
    return bare
