"""5 PREPROCESS (DICOM half). Series -> frames: display pixels, each with its plane geometry (LPS, mm)."""

import errno
import hashlib
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import iter_pixels
from pydicom.uid import ExplicitVRBigEndian

from dicom_node.display import Display, to_display
from dicom_node.errors import ChildFailed, ChildGone, InputUnreadable
from dicom_node.header import MAX_META_BYTES, META_START, split_meta

Triple = tuple[float, float, float]
Decode = Callable[[str], Iterator[Display]]
HASH_CHUNK_BYTES = 1 << 20
IMAGER_PIXEL_SPACING = "Imager Pixel Spacing"  # at the detector, so larger than in the patient

# What pydicom and its decoders raise for pixels they cannot decode; there is no common base class.
UNDECODABLE = (
    AttributeError,
    ArithmeticError,
    EOFError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    InvalidDicomError,
)

# What the kernel says when it is not the content that is wrong (EINVAL may be: an offset out of the file).
DISK_ERRORS = frozenset(
    {
        errno.EACCES, errno.EBADMSG, errno.EIO, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENODEV,
        errno.ENOENT, errno.ENXIO, errno.EPERM, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EUCLEAN,
    }
)  # fmt: skip

NOT_IMAGES: dict[str, str] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a whole slide image, whose frames are tiles",
}
GROUPS_OF_INTEREST = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "FrameVOILUTSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "CardiacSynchronizationSequence",
    "MREchoSequence",
)
ROOT_OF_INTEREST = (
    "Modality",
    "BodyPartExamined",
    "PhotometricInterpretation",
    "BitsStored",
    "BitsAllocated",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelSpacing",
    "SliceThickness",
    "ImagerPixelSpacing",
    "SequenceOfUltrasoundRegions",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "TriggerTime",
    "TemporalPositionIdentifier",
    "EchoTime",
)


class NotSuitable(Exception):
    """A series that cannot be analysed, now or later; `reason` is a sentence without names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class FrameLimits:
    """What one series may hold; checked against the headers, before a pixel is decoded."""

    max_frames: int = 2000  # of the series
    max_frame_megapixels: float = 50.0  # rows x columns of one frame
    max_series_megapixels: float = 600.0  # rows x columns x samples x frames: megabytes held in memory


@dataclass(frozen=True)
class Moment:
    """When in a repeated movement a frame was made, by what its header says of it."""

    trigger_time_ms: float | None = None  # after the R wave
    temporal_position: int | None = None
    instance_number: int = 0
    echo_time_ms: float | None = None  # frames of different echoes are no phases of one movement


@dataclass(frozen=True, eq=False)
class Frame:
    """One 2D image plane, as it is shown, and where it lies."""

    display: Display  # (H, W) grey or (H, W, 3) RGB; grey stays one channel until it is asked for
    source: Dataset  # header of its instance, without pixels
    frame_number: int | None  # 1-based in a multi-frame instance
    spacing_mm: tuple[float, float] | None  # between rows, between columns
    spacing_origin: str  # which attribute the spacing comes from; "" when there is none
    slice_thickness_mm: float | None
    position: Triple | None  # LPS, mm, centre of the first pixel, digits as in the source
    orientation: tuple[float, ...] | None  # direction cosines of row and column, digits as in the source
    moment: Moment = Moment()

    @property
    def image(self) -> NDArray[np.uint8]:
        """Display values (H, W, 3) uint8, RGB."""
        if self.display.ndim == 3:
            return self.display
        return np.repeat(self.display[:, :, np.newaxis], 3, axis=2)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.display.shape[0], self.display.shape[1]


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The frames of one series in geometric order, all of one size."""

    datasets: tuple[Dataset, ...]  # headers as read, in the order of their first frame
    frames: tuple[Frame, ...]
    digests: tuple[str, ...]  # sha256 of the data sets the frames come from, sorted
    left_out: tuple[str, ...]  # why an instance or frame of the series is not among `frames`


@dataclass(frozen=True, eq=False)
class _Instance:
    path: Path
    header: Dataset
    frame_count: int


def display_frames(path: str) -> Iterator[Display]:
    """Each frame of an image file as it is shown; what a limited child runs on files from outside.

    Raises
    ------
    InputUnreadable
        If the disk does not give it.
    """
    with reading(Path(path)):
        header = dcmread(path, stop_before_pixels=True)
        for index, stored in enumerate(_pixels(path, header)):
            yield to_display(stored, frame_attributes(header, index))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what the disk fails at as InputUnreadable; what is wrong with the content passes as it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        name = errno.errorcode[error.errno]
        raise InputUnreadable(f"the file {path.name} cannot be read ({name})") from error


def load_series(paths: Sequence[Path], limits: FrameLimits, decode: Decode = display_frames) -> SourceSeries:
    """Read the files of one series into frames sorted by geometry, never by arrival.

    Parameters
    ----------
    decode : gives the frames of a file; a node passes `display_frames` in a limited child

    Raises
    ------
    NotSuitable
        If no file holds an image that can be shown, or the series is larger than `limits`.
    InputUnreadable
        If the disk does not give a file: a result without it would look whole.
    """
    left_out: list[str] = []
    instances = _readable(paths, left_out)
    _check_limits(instances, limits)
    frames = [frame for instance in instances for frame in _decode(instance, left_out, decode)]
    if not frames:
        raise NotSuitable(left_out[0] if left_out else "the series has no instances")
    kept = _sorted_by_geometry(_of_commonest_size(frames, left_out))
    datasets = tuple({str(frame.source.SOPInstanceUID): frame.source for frame in kept}.values())
    used = {str(dataset.SOPInstanceUID) for dataset in datasets}
    digests = sorted(_sha256(i.path) for i in instances if str(i.header.SOPInstanceUID) in used)
    return SourceSeries(datasets, tuple(kept), tuple(digests), tuple(left_out))


def join_series(parts: Sequence[SourceSeries]) -> SourceSeries:
    """Several series as one, e.g. the slices of a heart that were each kept in a series of its own."""
    if len(parts) == 1:
        return parts[0]
    left_out = [reason for part in parts for reason in part.left_out]
    frames = [frame for part in parts for frame in part.frames]
    kept = _sorted_by_geometry(_of_commonest_size(frames, left_out))
    datasets = {str(frame.source.SOPInstanceUID): frame.source for frame in kept}
    digests = sorted(digest for part in parts for digest in part.digests)
    return SourceSeries(tuple(datasets.values()), tuple(kept), tuple(digests), tuple(left_out))


def _readable(paths: Sequence[Path], left_out: list[str]) -> list[_Instance]:
    by_uid: dict[str, _Instance] = {}
    for path in paths:
        instance = _read(path, left_out)
        if instance is not None:
            by_uid.setdefault(str(instance.header.SOPInstanceUID), instance)
    if len({str(instance.header.SeriesInstanceUID) for instance in by_uid.values()}) > 1:
        raise NotSuitable("the files belong to more than one series")
    return [by_uid[uid] for uid in sorted(by_uid)]


def _read(path: Path, left_out: list[str]) -> _Instance | None:
    try:
        with reading(path):
            header = dcmread(path, stop_before_pixels=True)
        reason = _why_no_image(header)
        frame_count = int(header.get("NumberOfFrames") or 1)
    except UNDECODABLE as error:
        left_out.append(f"an instance cannot be read ({type(error).__name__})")
        return None
    if reason:
        left_out.append(reason)
        return None
    return _Instance(path, header, max(frame_count, 1))


def _why_no_image(header: Dataset) -> str:
    what = NOT_IMAGES.get(str(header.get("SOPClassUID", "")))
    if what:
        return f"an instance is {what}, not an image to analyse"
    if not all(header.get(uid) for uid in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")):
        return "an instance lacks one of its UIDs"
    if not header.get("Rows") or not header.get("Columns") or not header.get("BitsStored"):
        return "an instance holds no image"
    is_palette = header.get("PhotometricInterpretation") == "PALETTE COLOR"
    if is_palette and header.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        return "an instance has a palette in the retired big endian encoding, which is not read"
    return ""


def _check_limits(instances: Sequence[_Instance], limits: FrameLimits) -> None:
    frames = sum(instance.frame_count for instance in instances)
    if frames > limits.max_frames:
        raise NotSuitable(f"the series has {frames} frames, more than the {limits.max_frames} allowed")
    megapixels = 0.0
    for instance in instances:
        frame = int(instance.header.Rows) * int(instance.header.Columns) / 1e6
        if frame > limits.max_frame_megapixels:
            raise NotSuitable(
                f"a frame has {frame:.3g} megapixels, more than {limits.max_frame_megapixels:g}"
            )
        megapixels += frame * int(instance.header.get("SamplesPerPixel") or 1) * instance.frame_count
    if megapixels > limits.max_series_megapixels:
        raise NotSuitable(
            f"the series has {megapixels:.2g} megapixels, more than {limits.max_series_megapixels:g}"
        )


def _decode(instance: _Instance, left_out: list[str], decode: Decode) -> list[Frame]:
    frames: list[Frame] = []
    try:
        for index, display in enumerate(decode(str(instance.path))):
            if index == instance.frame_count:  # asked for, so that a child that decodes comes to its end
                break
            number = index + 1 if instance.frame_count > 1 else None
            attributes = frame_attributes(instance.header, index)
            frames.append(_frame(display, instance.header, attributes, number))
    except (ChildGone, InputUnreadable):
        raise  # no fault of the images: the job is tried again
    except ChildFailed as error:
        left_out.append(f"the pixels of an instance cannot be decoded: {error}")
        return []
    except UNDECODABLE as error:
        left_out.append(f"the pixels of an instance cannot be decoded ({type(error).__name__})")
        return []
    return frames


def _pixels(path: str, header: Dataset) -> Iterator[NDArray[np.generic]]:
    """Stored values of each frame; only what is not compressed can be read frame by frame from the file."""
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_deflated or syntax.is_compressed:
        yield from iter_pixels(dcmread(path))
    else:
        yield from iter_pixels(path)


def frame_attributes(header: Dataset, index: int) -> Dataset:
    """Attributes of frame `index` (0-based): those of the root, overlaid by its functional groups."""
    if "SharedFunctionalGroupsSequence" not in header and "PerFrameFunctionalGroupsSequence" not in header:
        return header
    attributes = Dataset()
    for keyword in ROOT_OF_INTEREST:
        if keyword in header:
            attributes[keyword] = header[keyword]
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    own = list(header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    for group in (*shared, *own):
        for keyword in GROUPS_OF_INTEREST:
            for item in list(group.get(keyword) or [])[:1]:
                attributes.update(item)
    return attributes


def _frame(display: Display, source: Dataset, header: Dataset, number: int | None) -> Frame:
    spacing, origin = spacing_of(header)
    position, orientation = plane_of(header)
    thickness = header.get("SliceThickness")
    slice_thickness = thickness if isinstance(thickness, int | float) and thickness > 0 else None
    moment = moment_of(header, source)
    return Frame(display, source, number, spacing, origin, slice_thickness, position, orientation, moment)


def moment_of(header: Dataset, source: Dataset) -> Moment:
    """Trigger time and temporal position of a frame, from its root attributes or its functional groups.

    Source: PS3.3 C.8.3.1 and C.7.6.18 (one image an instance), C.7.6.16.2.2 and C.7.6.18.1 (enhanced).
    """
    trigger = _number(header, "NominalCardiacTriggerDelayTime", "TriggerTime")
    temporal = _number(header, "TemporalPositionIndex", "TemporalPositionIdentifier")
    echo = _number(header, "EffectiveEchoTime", "EchoTime")
    position = None if temporal is None else int(temporal)
    return Moment(trigger, position, int(source.get("InstanceNumber") or 0), echo)


def _number(header: Dataset, *keywords: str) -> float | None:
    """The first of the attributes that is one finite number."""
    for keyword in keywords:
        value = header.get(keyword)
        if isinstance(value, int | float) and np.isfinite(float(value)):
            return float(value)
    return None


def spacing_of(header: Dataset) -> tuple[tuple[float, float] | None, str]:
    """Distance of rows and of columns in mm, and which attribute says so."""
    for keyword, origin in (
        ("PixelSpacing", "Pixel Spacing"),
        ("ImagerPixelSpacing", IMAGER_PIXEL_SPACING),
    ):
        values = _finite(header.get(keyword), 2)
        if values is not None and min(values) > 0:
            return (values[0], values[1]), origin
    ultrasound = _ultrasound_spacing(header)
    return (ultrasound, "Sequence of Ultrasound Regions") if ultrasound else (None, "")


def _ultrasound_spacing(header: Dataset) -> tuple[float, float] | None:
    """Spacing of the first 2D tissue region that is calibrated in cm. Source: PS3.3 C.8.5.5."""
    for region in header.get("SequenceOfUltrasoundRegions") or []:
        is_cm = region.get("PhysicalUnitsXDirection") == 3 and region.get("PhysicalUnitsYDirection") == 3
        deltas = _finite([region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")], 2)
        if is_cm and region.get("RegionSpatialFormat", 1) == 1 and deltas and 0.0 not in deltas:
            return abs(deltas[0]) * 10.0, abs(deltas[1]) * 10.0
    return None


def plane_of(header: Dataset) -> tuple[Triple | None, tuple[float, ...] | None]:
    """Image Position and Orientation (Patient), or (None, None) where they are missing or not orthonormal."""
    position = _finite(header.get("ImagePositionPatient"), 3)
    orientation = _finite(header.get("ImageOrientationPatient"), 6)
    if position is None or orientation is None:
        return None, None
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = (float(np.linalg.norm(row)), float(np.linalg.norm(column)))
    if max(abs(length - 1.0) for length in lengths) > 1e-2 or abs(float(row @ column)) > 1e-2:
        return None, None
    return (position[0], position[1], position[2]), orientation


def _finite(values: object, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers, kept as they are so that a decimal string keeps its digits."""
    if not hasattr(values, "__iter__"):
        return None
    numbers = tuple(values)
    if len(numbers) != count or not all(isinstance(number, int | float) for number in numbers):
        return None
    return numbers if all(np.isfinite(float(number)) for number in numbers) else None


def _of_commonest_size(frames: list[Frame], left_out: list[str]) -> list[Frame]:
    """A SEG has one matrix size, so the frames of the commonest size are analysed and the others named."""
    (size, count), *_ = Counter(frame.size for frame in frames).most_common(1)
    if count < len(frames):
        left_out.append(f"{len(frames) - count} frames are not {size[0]} x {size[1]} pixels like the others")
    return [frame for frame in frames if frame.size == size]


def _sorted_by_geometry(frames: list[Frame]) -> list[Frame]:
    orientations: list[tuple[float, ...]] = []
    if all(frame.orientation is not None for frame in frames):
        orientations = sorted({_rounded(frame.orientation) for frame in frames})

    def key(frame: Frame) -> tuple[int, float, float, int, str, int]:
        which = orientations.index(_rounded(frame.orientation)) if orientations else 0
        along = round(distance_along_normal(frame), 3) if orientations else 0.0
        time = (frame.moment.trigger_time_ms or 0.0) if orientations else 0.0
        number = frame.moment.instance_number
        return which, along, time, number, str(frame.source.SOPInstanceUID), frame.frame_number or 0

    return sorted(frames, key=key)


def _rounded(orientation: tuple[float, ...] | None) -> tuple[float, ...]:
    return tuple(round(float(cosine), 3) + 0.0 for cosine in orientation or ())


def distance_along_normal(frame: Frame) -> float:
    """Where the plane lies along its own normal, in mm; 0 without geometry."""
    if frame.position is None or frame.orientation is None:
        return 0.0
    normal = np.cross(np.array(frame.orientation[:3], float), np.array(frame.orientation[3:], float))
    return float(normal @ np.array(frame.position, float))


def _sha256(path: Path) -> str:
    """Digest of the data set and its transfer syntax.

    The File Meta Information is left out: every receiver writes its own, and the same instance has to give
    the same result whichever way it came.
    """
    with reading(path), path.open("rb") as file:
        meta, end = split_meta(file.read(META_START + MAX_META_BYTES))
        digest = hashlib.sha256(str(meta.TransferSyntaxUID).encode())
        file.seek(end)
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
