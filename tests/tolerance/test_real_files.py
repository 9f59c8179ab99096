"""Every real file of ../shared/data/dicom: in by STOW and C-STORE, out with the same data set, same pixels.

What a file is refused for is a status of the table in dicom_node/errors.py, never a fault of the node.
"""

from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels import pixel_array
from pydicom.uid import UID

from dicom_node.dimse.listener import start_listener
from dicom_node.dimse.scu import send_instances
from dicom_node.settings_network import PeerSettings
from storage.index import find_instance
from tests.dicom_node.dimse.instances import data_set_bytes, make_settings
from tests.dicom_node.web.ohif import FRAMES, JSON, decode, upload
from tests.doors import make_receiver

pytestmark = [
    pytest.mark.shared,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings(
        "ignore"
    ),  # pydicom warns of what is odd in real files; that they pass is the point
]

DOCUMENTED = {0xA700, 0xA900, 0xA901, 0x0111, 0x0117, 0x0122, 0xC000, 0xC122, 45070}
PLAIN = 'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'
WHOLE = "application/dicom; transfer-syntax=*"
UNDECODABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


def stow(node, content):
    answer = node.send("POST", "/dicom-web/studies", **upload(content))
    assert answer.status_code < 500 or answer.status_code == 507, answer.text
    stored = answer.json().get("00081199", {}).get("Value", [])
    failed = answer.json().get("00081198", {}).get("Value", [])
    for item in failed:
        assert item["00081197"]["Value"][0] in DOCUMENTED, item
    return stored[0]["00081190"]["Value"][0] if stored else ""


def test_in_by_stow_and_out_by_wado(node, real_file):
    content = real_file.read_bytes()
    address = stow(node, content)
    if not address:
        return  # refused with a documented status
    whole = node.get(address, WHOLE)
    assert whole.status_code == 200
    assert whole.content[:128] == bytes(128)
    assert data_set_bytes(whole.content) == data_set_bytes(content)
    metadata = node.get(f"{address}/metadata", JSON)
    assert metadata.status_code == 200
    assert metadata.json()[0]["00080018"]["Value"][0] == address.rsplit("/", 1)[1]
    if len(content) % 4 == 0:  # each takes a child process some time
        assert node.get(f"{address}/thumbnail", "image/jpeg").status_code < 500
    for number in sample_of_frames(content):
        check_frame(node, address, content, number)


def sample_of_frames(content):
    dataset = dcmread(BytesIO(content), stop_before_pixels=True)
    if "Rows" not in dataset:
        return []
    count = int(dataset.get("NumberOfFrames") or 1)
    return sorted({1, count})


def check_frame(node, address, content, number):
    expected = decoded_by_pydicom(content, number)
    stored = node.get(f"{address}/frames/{number}", FRAMES)
    plain = node.get(f"{address}/frames/{number}", PLAIN)
    assert stored.status_code in (200, 404, 406)
    assert plain.status_code in (200, 404, 406)
    if expected is None:
        return  # pydicom cannot decode it either
    assert plain.status_code == 200, plain.text
    (frame,) = decode(plain.content)
    assert pixels_agree(frame, expected), "the frame is not what pydicom decodes"


def decoded_by_pydicom(content, number):
    """Plain samples of one frame, as they stand in Explicit VR Little Endian, or None."""
    dataset = dcmread(BytesIO(content))
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" and not is_compressed(dataset):
        return dataset.PixelData  # stored with half the chroma; pydicom gives it at full size
    try:
        array = pixel_array(dataset, index=number - 1, raw=True)
    except UNDECODABLE:
        return None
    if dataset.BitsAllocated == 1:
        return np.packbits(array.reshape(-1), bitorder="little").tobytes()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def is_compressed(dataset):
    return dataset.file_meta.TransferSyntaxUID.is_encapsulated


def pixels_agree(frame, expected):
    """A frame of an odd number of bytes is padded to an even one."""
    return frame.rstrip(b"\0") == expected.rstrip(b"\0") and abs(len(frame) - len(expected)) <= 1


def test_in_by_c_store(tmp_path, database, database_url, files_root, free_port, real_files):
    """All in one go: what a sender can negotiate is kept byte for byte."""
    port = free_port()
    settings = make_settings(tmp_path, database_url, files_root, dimse={"port": port})
    listener = start_listener(settings, make_receiver(database, files_root), database)
    try:
        peer = PeerSettings(name="node", ae_title="SIM4SEG", host="127.0.0.1", port=port)
        sendable = [path for path in real_files if has_meta(path)]
        statuses = send_instances(sendable, peer, "SCANNER")
    finally:
        listener.shutdown()
    kept = 0
    for path, status in zip(sendable, statuses, strict=True):
        if status.status != 0:
            assert status.status in DOCUMENTED | {None, 290, 0}, (path, status)  # None: not negotiated
            continue
        uid = str(dcmread(path, stop_before_pixels=True, force=True).SOPInstanceUID)
        with database.reading() as tx:
            row = find_instance(tx, uid)
        assert row is not None, path
        if row.transfer_syntax_uid == str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID):
            assert data_set_bytes((files_root / row.path).read_bytes()) == data_set_bytes(
                path.read_bytes()
            ), path
            kept += 1
    assert kept > len(sendable) // 2, [status.status for status in statuses]


def has_meta(path):
    """Whether a sender can say what it sends."""
    if path.read_bytes()[128:132] != b"DICM":
        return False
    meta = dcmread(path, stop_before_pixels=True).file_meta
    named = [meta.get(keyword) for keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID")]
    return all(uid is not None and UID(str(uid)).is_valid for uid in named)
