from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import compress
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_node.display import apply_window
from dicom_node.errors import ChildGone, InputUnreadable
from dicom_node.frames import FrameLimits, NotSuitable, display_frames, load_series
from dicom_node.limited import LimitedPool, Limits
from tests import builders
from tests.dicom_node.limited_functions import process_id

SIZE = (24, 32)
EIO_FILE = Path("/proc/self/mem")  # nothing is mapped where it begins: it opens, and reading it is EIO
MAX_BYTES = 50_000  # of a real file, to stay quick


def grey_dataset(values: np.ndarray, **attributes: object) -> Dataset:
    """A 16-bit MR instance with these stored values and nothing that says how to show them."""
    dataset = builders.make_stack([np.zeros(values.shape, bool)])[0]
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.PixelRepresentation = 1 if values.dtype == np.int16 else 0
    dataset.PixelData = values.tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def ramp() -> np.ndarray:
    return np.linspace(0, 1000, SIZE[0] * SIZE[1]).astype(np.uint16).reshape(SIZE)


def shown(tmp_path: Path, dataset: Dataset) -> np.ndarray:
    return builders.as_loaded(tmp_path, [dataset]).frames[0].image


def test_first_window_maps_to_the_display_range(tmp_path: Path) -> None:
    image = shown(tmp_path, grey_dataset(ramp(), WindowCenter=[500, 40], WindowWidth=[201, 80]))
    values = ramp()
    assert (image[values <= 399] == 0).all()
    assert (image[values >= 600] == 255).all()
    assert abs(int(image[..., 0][np.abs(values.astype(int) - 500) <= 1][0]) - 128) <= 2
    assert image.shape == (*SIZE, 3)


def test_rescale_goes_before_the_window(tmp_path: Path) -> None:
    plain = shown(
        tmp_path / "a",
        grey_dataset(ramp(), WindowCenter=0, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-500),
    )
    moved = shown(tmp_path / "b", grey_dataset(ramp(), WindowCenter=500, WindowWidth=400))
    assert (plain == moved).all()


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    window = {"WindowCenter": 500, "WindowWidth": 400}
    upright = shown(tmp_path / "a", grey_dataset(ramp(), **window))
    inverse = shown(tmp_path / "b", grey_dataset(ramp(), PhotometricInterpretation="MONOCHROME1", **window))
    assert (inverse == 255 - upright).all()


def test_voi_look_up_table(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [1001, 0, 8]
    table.add_new("LUTData", "US", [255 - index * 255 // 1000 for index in range(1001)])
    image = shown(tmp_path, grey_dataset(ramp(), VOILUTSequence=[table]))
    assert image[0, 0, 0] == 255
    assert image[-1, -1, 0] == 0


def test_without_a_window_the_percentiles_decide(tmp_path: Path) -> None:
    values = ramp()
    values[0, 0] = 60000  # a hot pixel must not make the rest black
    image = shown(tmp_path, grey_dataset(values))
    assert image[..., 0].std() > 60


@pytest.mark.parametrize(("body_part", "lung", "liver"), [("CHEST", 64, 240), ("ABDOMEN", 0, 166)])
def test_ct_without_a_window_is_shown_by_body_part(
    tmp_path: Path, body_part: str, lung: int, liver: int
) -> None:
    values = np.full(SIZE, -976, np.int16)
    values[:, 16:] = 100
    dataset = grey_dataset(
        values, Modality="CT", BodyPartExamined=body_part, RescaleIntercept=0, RescaleSlope=1
    )
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    image = shown(tmp_path, dataset)
    assert abs(int(image[0, 0, 0]) - lung) <= 2
    assert abs(int(image[0, -1, 0]) - liver) <= 15


def test_window_functions_agree_with_the_standard() -> None:
    values = np.array([0.0, 50.0, 100.0])
    assert apply_window(values, (50, 100), "LINEAR_EXACT").tolist() == [0, 128, 255]
    assert apply_window(values, (50, 100), "SIGMOID").tolist() == [30, 128, 225]
    assert apply_window(values, (50.5, 1), "LINEAR").tolist() == [0, 0, 255]


def test_colour_stays_colour_and_palettes_are_looked_up(tmp_path: Path) -> None:
    mask = builders.make_ellipse(SIZE, (12, 16), (5, 7))
    details = builders.SeriesDetails(modality="ES", patient=builders.PATIENT)
    colour = builders.make_colour_image(mask)
    dataset = builders.build_series([colour], details)[0]
    assert (shown(tmp_path / "rgb", dataset) == colour).all()
    palette = builders.make_ultrasound(mask)
    palette.PhotometricInterpretation = "PALETTE COLOR"
    for name, table in (("Red", range(256)), ("Green", [0] * 256), ("Blue", range(255, -1, -1))):
        setattr(palette, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(palette, f"{name}PaletteColorLookupTableData", bytes(table))
    image = shown(tmp_path / "palette", palette)
    stored = builders.make_grey_image(mask)
    assert (image[..., 0] == stored).all()
    assert (image[..., 1] == 0).all()
    assert (image[..., 2] == 255 - stored).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_pixels_are_the_same_pixels(tmp_path: Path, syntax: str) -> None:
    plain = builders.make_ultrasound()
    packed = builders.make_ultrasound()
    compress(packed, syntax)
    assert packed.file_meta.TransferSyntaxUID == syntax
    first, second = shown(tmp_path / "plain", plain), shown(tmp_path / "packed", packed)
    assert (first == second).all()


@pytest.mark.parametrize(
    "orientation",
    [("1", "0", "0", "0", "1", "0"), ("0.8", "0.6", "0", "0", "0", "-1"), ("0", "1", "0", "0", "0", "-1")],
)
def test_slices_are_sorted_by_geometry_not_by_arrival(tmp_path: Path, orientation: tuple[str, ...]) -> None:
    masks = [builders.make_ellipse(SIZE, (12, 16), (3 + n, 4 + n)) for n in range(6)]
    stack = builders.make_stack(masks, orientation=orientation)
    for number, dataset in enumerate(stack):
        dataset.InstanceNumber = 100 - number  # a scanner may count the other way
    paths = builders.write_datasets(tmp_path, [stack[n] for n in (3, 0, 5, 1, 4, 2)])
    series = load_series(paths[::-1], FrameLimits())
    assert [frame.source.SOPInstanceUID for frame in series.frames] == [each.SOPInstanceUID for each in stack]
    assert series.frames[0].spacing_mm == (1.5, 0.75)
    assert str(series.frames[0].orientation[0]) == orientation[0]


def test_frames_of_a_clip_keep_their_number(tmp_path: Path) -> None:
    masks = [builders.make_ellipse(SIZE, (12, 16), (3 + n, 4 + n)) for n in range(12)]
    series = builders.as_loaded(tmp_path, [builders.make_multiframe(masks)])
    assert [frame.frame_number for frame in series.frames] == list(range(1, 13))
    assert series.frames[0].position is None


def test_functional_groups_give_each_frame_its_place(tmp_path: Path) -> None:
    dataset = enhanced_mr(4)
    series = builders.as_loaded(tmp_path, [dataset])
    assert [frame.frame_number for frame in series.frames] == [4, 3, 2, 1]
    assert [frame.position for frame in series.frames] == [(0, 0, -15), (0, 0, -10), (0, 0, -5), (0, 0, 0)]
    assert series.frames[0].spacing_mm == (1.25, 0.5)
    assert series.frames[0].image.max() == 255


def enhanced_mr(frames: int) -> Dataset:
    """Frames that go down from the origin, geometry and window in functional groups."""
    dataset = builders.make_stack([builders.make_ellipse(SIZE, (12, 16), (5, 7))])[0]
    for keyword in (
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "WindowCenter",
        "WindowWidth",
    ):
        delattr(dataset, keyword)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.NumberOfFrames = frames
    dataset.PixelData = dataset.PixelData * frames
    shared, orientation, measures, window = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    measures.PixelSpacing = ["1.25", "0.50"]
    window.WindowCenter, window.WindowWidth = 90, 100
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    shared.FrameVOILUTSequence = [window]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for number in range(frames):
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = ["0", "0", str(-5 * number)]
        group.PlanePositionSequence = [place]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    return dataset


def test_spacing_says_where_it_comes_from(tmp_path: Path) -> None:
    ultrasound = builders.as_loaded(
        tmp_path / "us", [builders.make_ultrasound(spacing_mm=(0.2, 0.1))]
    ).frames[0]
    assert ultrasound.spacing_mm == pytest.approx((0.2, 0.1))
    assert ultrasound.spacing_origin == "Sequence of Ultrasound Regions"
    details = builders.SeriesDetails(modality="DX", body_part="HAND", spacing_mm=(0.15, 0.15))
    radiograph = builders.build_series([np.zeros(SIZE, np.uint8)], details)
    frame = builders.as_loaded(tmp_path / "dx", radiograph).frames[0]
    assert (frame.spacing_mm, frame.spacing_origin) == ((0.15, 0.15), "Imager Pixel Spacing")
    bare = builders.as_loaded(tmp_path / "none", [builders.make_ultrasound(spacing_mm=None)]).frames[0]
    assert (bare.spacing_mm, bare.spacing_origin) == (None, "")


def test_the_commonest_size_is_kept_and_the_rest_named(tmp_path: Path) -> None:
    stack = builders.make_stack([np.ones(SIZE, bool)] * 3)
    odd = builders.make_stack([np.ones((10, 10), bool)])[0]
    odd.SeriesInstanceUID, odd.SOPInstanceUID = stack[0].SeriesInstanceUID, "2.25.77"
    odd.file_meta.MediaStorageSOPInstanceUID = odd.SOPInstanceUID
    series = builders.as_loaded(tmp_path, [*stack, odd])
    assert len(series.frames) == 3
    assert series.left_out == ("1 frames are not 24 x 32 pixels like the others",)
    assert len(series.digests) == 3


def test_a_truncated_file_is_left_out_and_named(tmp_path: Path) -> None:
    stack = builders.make_stack([np.ones(SIZE, bool)] * 2)
    paths = builders.write_datasets(tmp_path, stack)
    paths[0].write_bytes(paths[0].read_bytes()[:-200])
    series = load_series(paths, FrameLimits())
    assert len(series.frames) == 1
    assert "cannot be decoded" in series.left_out[0]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (FrameLimits(max_frames=2), "3 frames, more than the 2"),
        (FrameLimits(max_frame_megapixels=0.0001), "a frame has 0.000768 megapixels"),
        (FrameLimits(max_series_megapixels=0.002), "the series has 0.0023 megapixels"),
    ],
)
def test_too_big_is_refused_before_decoding(tmp_path: Path, limits: FrameLimits, words: str) -> None:
    stack = builders.make_stack([np.ones(SIZE, bool)] * 3)
    for dataset in stack:
        dataset.PixelData = b"\0\0"  # would fail if anybody decoded it
    paths = builders.write_datasets(tmp_path, stack)
    with pytest.raises(NotSuitable, match=words):
        load_series(paths, limits)


def test_what_is_no_image_is_not_suitable(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_bytes(b"not DICOM at all" * 20)
    with pytest.raises(NotSuitable, match="cannot be read"):
        load_series([tmp_path / "text.dcm"], FrameLimits())
    with pytest.raises(NotSuitable, match="no instances"):
        load_series([], FrameLimits())
    bare = builders.make_ultrasound()
    del bare.PixelData
    with pytest.raises(NotSuitable, match="cannot be decoded"):
        builders.as_loaded(tmp_path / "bare", [bare])
    document = builders.make_ultrasound()
    for keyword in ("Rows", "Columns", "BitsStored", "PixelData"):
        delattr(document, keyword)
    with pytest.raises(NotSuitable, match="holds no image"):
        builders.as_loaded(tmp_path / "document", [document])
    mask = builders.make_ultrasound()
    mask.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    with pytest.raises(NotSuitable, match="segmentation"):
        builders.as_loaded(tmp_path / "mask", [mask])


def test_two_series_at_once_are_refused(tmp_path: Path) -> None:
    first, second = builders.make_ultrasound(), builders.make_stack([np.ones(SIZE, bool)])[0]
    with pytest.raises(NotSuitable, match="more than one series"):
        builders.as_loaded(tmp_path, [first, second])


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_real_files_are_read_or_refused_with_a_sentence(shared_data: Path) -> None:
    folder = shared_data / "data" / "dicom"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size < MAX_BYTES]
    read, refused = 0, 0
    for path in files:
        try:
            series = load_series([path], FrameLimits())
        except NotSuitable:
            refused += 1
            continue
        assert series.frames[0].image.dtype == np.uint8
        read += 1
    assert read >= 75
    assert refused >= 30


@pytest.mark.shared
def test_ybr_of_a_real_jpeg_becomes_rgb(shared_data: Path) -> None:
    folder = shared_data / "data" / "dicom" / "pydicom"
    ybr = load_series([folder / "SC_rgb_dcmtk_+eb+cy+s2.dcm"], FrameLimits()).frames[0].image
    rgb = load_series([folder / "SC_rgb_rle.dcm"], FrameLimits()).frames[0].image
    assert dcmread(folder / "SC_rgb_dcmtk_+eb+cy+s2.dcm").PhotometricInterpretation == "YBR_FULL_422"
    assert np.median(np.abs(ybr.astype(int) - rgb.astype(int))) <= 3


def test_explicit_little_endian_is_what_builders_write() -> None:
    assert builders.make_ultrasound().file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


# ---- pixels are decoded in a limited child


def test_frames_decoded_in_a_child_are_the_same(tmp_path: Path) -> None:
    clip = builders.make_multiframe([builders.make_ellipse((40, 50), (20, 20), (8, 8 + n)) for n in range(3)])
    paths = builders.write_datasets(tmp_path, [clip])
    limits = Limits(memory_bytes=512 << 20, cpu_s=60, wall_s=120)
    with LimitedPool(1, limits=limits) as pool:
        there = load_series(paths, FrameLimits(), partial(pool.each, display_frames))
    here = load_series(paths, FrameLimits())
    pairs = zip(there.frames, here.frames, strict=True)
    assert all((one.display == other.display).all() for one, other in pairs)


def test_what_a_child_cannot_decode_is_named(tmp_path: Path) -> None:
    dataset = builders.make_ultrasound()
    dataset.PixelData = dataset.PixelData[:100]
    paths = builders.write_datasets(tmp_path, [dataset])
    with (
        LimitedPool(1, limits=Limits(memory_bytes=512 << 20, cpu_s=60, wall_s=120)) as pool,
        pytest.raises(NotSuitable, match="cannot be decoded: it failed with ValueError"),
    ):
        load_series(paths, FrameLimits(), partial(pool.each, display_frames))


def test_a_child_that_somebody_killed_is_no_fault_of_the_images(tmp_path: Path) -> None:
    def killed(path: str) -> Iterator[np.ndarray]:
        raise ChildGone(path)
        yield

    paths = builders.write_datasets(tmp_path, [builders.make_ultrasound()])
    with pytest.raises(ChildGone):
        load_series(paths, FrameLimits(), killed)


def test_a_file_that_the_disk_does_not_give_is_never_left_out(tmp_path: Path) -> None:
    """RES-09: a result on the other images would look whole."""
    paths = builders.write_datasets(tmp_path, builders.make_stack([np.zeros(SIZE, bool)] * 2))
    with pytest.raises(InputUnreadable, match="EIO"):
        load_series([*paths, EIO_FILE], FrameLimits())
    with pytest.raises(InputUnreadable, match="EIO"):
        load_series(paths, FrameLimits(), lambda _: display_frames(str(EIO_FILE)))
    limits = Limits(memory_bytes=512 << 20, cpu_s=60, wall_s=120)
    with LimitedPool(1, limits=limits) as pool, pytest.raises(InputUnreadable, match="EIO"):
        load_series(paths, FrameLimits(), lambda _: pool.each(display_frames, str(EIO_FILE)))


def test_the_files_of_a_series_are_decoded_by_one_child(tmp_path: Path) -> None:
    """A child that is left before its end is ended itself, and starting one costs more than a slice."""
    stack = builders.make_stack([builders.make_ellipse(SIZE, (12, 16), (5, 7))] * 4)
    paths = builders.write_datasets(tmp_path, [*stack])
    with LimitedPool(1, limits=Limits(512 * 1024 * 1024, 30.0, 60.0)) as pool:
        before = pool.run(process_id)
        loaded = load_series(paths, FrameLimits(), partial(pool.each, display_frames))
        assert len(loaded.frames) == 4
        assert pool.run(process_id) == before
