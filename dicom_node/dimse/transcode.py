"""A copy of an instance in an uncompressed transfer syntax, for peers that accept no other; never lossy.

Compressed pixels are decoded, never encoded; samples, colour space and SOP Instance UID stay. It runs in a
limited child process, as every decoding of outside data.

Source: PS3.4 C.4.2.2.1 (the SCP may convert), PS3.5 Annex A (transfer syntaxes), PS3.5 7.3 (byte order).
"""

import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final, Self

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.limited import LimitedChild, Limits

PLAIN: Final = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
CHUNK_BYTES: Final = 8 * 1024 * 1024
LIMITS: Final = Limits(memory_bytes=4 * 1024**3, cpu_s=300.0, wall_s=600.0)
WORD_BYTES: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


class Transcoder:
    """Makes copies in `folder`, in one child that is started when first needed; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: LimitedChild | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()

    def plain_copy(self, source: Path, syntax: str) -> Path:
        """Write a Part 10 copy of `source`, encoded in `syntax`, one of `PLAIN`; return its path.

        Raises
        ------
        NodeError
            DecodeFailed, PixelBudgetExceeded or ChildKilled: there is no such copy.
        """
        if self._child is None or not self._child.is_alive:
            self._child = LimitedChild()
        target = self._folder / f"{uuid.uuid4().hex}.dcm"
        try:
            with target.open("xb") as file:
                for chunk in self._child.each(encode_plain, [str(source), syntax], LIMITS):
                    file.write(chunk)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target


def encode_plain(source: str, syntax: str) -> Iterator[bytes]:
    """Yield the Part 10 file at `source`, encoded in `syntax`, chunk by chunk; runs in the child."""
    dataset = dcmread(source, force=False)
    stored = UID(dataset.file_meta.TransferSyntaxUID)
    if stored.is_encapsulated:
        dataset.decompress(as_rgb=False, generate_instance_uid=False)
    elif not stored.is_little_endian:
        dataset.walk(_swap_words)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    buffer = BytesIO()
    dcmwrite(
        buffer,
        dataset,
        implicit_vr=UID(syntax).is_implicit_VR,
        little_endian=True,
        enforce_file_format=True,
    )
    view = buffer.getbuffer()
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def _swap_words(dataset: Dataset, element: object) -> None:
    """Turn the byte order of values that pydicom keeps as bytes."""
    del dataset
    vr, value = str(getattr(element, "VR", "")), getattr(element, "value", None)
    size = WORD_BYTES.get(vr)
    if size is None or not isinstance(value, bytes):
        return
    swapped = bytearray(len(value))
    for offset in range(size):
        swapped[offset::size] = value[size - 1 - offset :: size]
    element.value = bytes(swapped)  # type: ignore[attr-defined]
