"""5 PREPROCESS (grey and colour half). Stored pixel values -> display values, as a person would see them."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut

Stored = NDArray[np.generic]
Display = NDArray[np.uint8]  # (H, W) grey or (H, W, 3) RGB, 0..255

LUNG_BODY_PARTS = frozenset({"CHEST", "LUNG", "THORAX", "LUNGS"})
LUNG_WINDOW = (-600.0, 1500.0)  # centre, width in Hounsfield units
SOFT_TISSUE_WINDOW = (40.0, 400.0)
PERCENTILES = (0.5, 99.5)  # of a frame that names no window


def to_display(stored: Stored, header: Dataset) -> Display:
    """Display values of one frame.

    Parameters
    ----------
    stored : (H, W) or (H, W, 3) stored values; colour already RGB
    header : attributes of the frame, functional groups already flattened
    """
    if stored.ndim == 3:
        return _scale_colour(stored, int(header.BitsStored))
    if header.PhotometricInterpretation == "PALETTE COLOR":
        rgb = apply_color_lut(np.asarray(stored), header)
        return _scale_colour(rgb, rgb.dtype.itemsize * 8)
    grey = _grey(stored, header)
    return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey


def _scale_colour(values: Stored, bits: int) -> Display:
    if bits <= 8 and values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    return (values.astype(np.uint32) >> max(bits - 8, 0)).clip(0, 255).astype(np.uint8)


def _grey(stored: Stored, header: Dataset) -> Display:
    values = apply_modality_lut(np.asarray(stored), header)
    if _has_voi_lut(header):
        return _through_voi_lut(values, header)
    window = first_window(header)
    if window is not None:
        return apply_window(values, window, str(header.get("VOILUTFunction") or "LINEAR"))
    if _is_display_ready(stored, header):
        return stored.astype(np.uint8)
    return _default_grey(values, stored, header)


def _has_voi_lut(header: Dataset) -> bool:
    return bool(header.get("VOILUTSequence")) and "LUTData" in header.VOILUTSequence[0]


def _through_voi_lut(values: Stored, header: Dataset) -> Display:
    """Source: PS3.3 C.11.2.1.1. pydicom wraps around in tables of more than 256 entries of 8 bits."""
    item = header.VOILUTSequence[0]
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    places = (values.astype(np.int64) - first).clip(0, min(count or 65536, table.size) - 1)
    return _quantise(table[places].astype(np.float64) * (255.0 / (2**bits - 1)))


def first_window(header: Dataset) -> tuple[float, float] | None:
    """Centre and width of the first window, or None when there is none that can be used."""
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if centre is None or width is None or not np.isfinite([centre, width]).all() or width <= 0:
        return None
    return centre, width


def _first(value: object) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str | int | float):
        return float(value)
    values = list(value) if isinstance(value, Iterable) else []
    return float(values[0]) if values else None


def apply_window(values: Stored, window: tuple[float, float], function: str) -> Display:
    """Map `values` through a window to 0..255. Source: PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    centre, width = window
    data = values.astype(np.float64)
    if function == "SIGMOID":
        return _quantise(255.0 / (1.0 + np.exp(np.clip(-4.0 * (data - centre) / width, -50.0, 50.0))))
    if function == "LINEAR_EXACT":
        return _quantise(((data - centre) / width + 0.5) * 255.0)
    if width <= 1:
        return _quantise((data > centre - 0.5) * 255.0)
    return _quantise(((data - (centre - 0.5)) / (width - 1.0) + 0.5) * 255.0)


def _quantise(values: NDArray[np.floating]) -> Display:
    return np.floor(values.clip(0.0, 255.0) + 0.5).astype(np.uint8)


def _is_display_ready(stored: Stored, header: Dataset) -> bool:
    """Eight unsigned bits without a look-up are what a viewer shows as they are."""
    is_identity = (
        float(header.get("RescaleSlope") or 1) == 1 and float(header.get("RescaleIntercept") or 0) == 0
    )
    has_lut = bool(header.get("ModalityLUTSequence"))
    return stored.dtype == np.uint8 and int(header.BitsStored) == 8 and is_identity and not has_lut


def _default_grey(values: Stored, stored: Stored, header: Dataset) -> Display:
    if header.get("Modality") == "CT" and header.get("RescaleIntercept") is not None:
        body_part = str(header.get("BodyPartExamined") or "").strip().upper()
        window = LUNG_WINDOW if body_part in LUNG_BODY_PARTS else SOFT_TISSUE_WINDOW
        return apply_window(values, window, "LINEAR")
    low, high = _percentile_range(values, stored, header)
    return apply_window(values, ((low + high) / 2.0, max(high - low, 1e-6)), "LINEAR_EXACT")


def _percentile_range(values: Stored, stored: Stored, header: Dataset) -> tuple[float, float]:
    padding = header.get("PixelPaddingValue")
    inside = values[stored != padding] if isinstance(padding, int) else values
    low, high = np.percentile(inside if inside.size else values, PERCENTILES)
    return float(low), float(high)
