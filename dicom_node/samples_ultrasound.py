"""A synthetic breast ultrasound image: speckle, layers, and an oval lesion that is darker than the gland."""

import numpy as np
from numpy.typing import NDArray

from dicom_node.samples_noise import Field, ellipse, random_curve, random_field, smooth, soft

SIZE = (384, 288)  # rows, columns
SPACING_MM = (0.1, 0.1)
DYNAMIC_RANGE_DB = 58.0
LOOKS = 2  # spatial compounding
LESION_CENTRE, LESION_RADII, LESION_TILT = (150.0, 150.0), (37.0, 68.0), 0.06


def make_breast_ultrasound(seed: int = 7) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Grey levels (H, W) and the true mask (H, W) of the lesion."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    lesion = _lesion_distance(rng, rows, columns)
    echo_db = _tissue(rng, rows, columns)
    inside = soft(lesion, 6.0)
    echo_db += inside * (-23.0 + 2.0 * random_field(rng, SIZE, 7, 10) - echo_db)
    capsule = np.exp(-((lesion - 1.5) ** 2) / 6.0) * (
        0.5 + 0.5 * np.abs(rows - LESION_CENTRE[0]) / LESION_RADII[0]
    )
    echo_db += 7.0 * capsule
    echo_db += _behind(lesion, rows, columns)
    speckle = _speckle(rng, 10.0 ** (echo_db / 20.0))
    reflectors = _reflectors(rng, rows, columns) * (1.0 - inside)
    level = 20.0 * np.log10(speckle + reflectors + 1e-4) + _gain_db(rows)
    grey = (level / DYNAMIC_RANGE_DB + 0.58).clip(0.0, 1.0)
    return np.floor(255.0 * grey**1.25 * 0.95 + 20.0 + 2.5 * rng.standard_normal(SIZE)).clip(0, 255).astype(
        np.uint8
    ), lesion < 0


def _lesion_distance(rng: np.random.Generator, rows: Field, columns: Field) -> Field:
    wobble = 2.2 * random_field(rng, SIZE, 15, 17) + 0.5 * random_field(rng, SIZE, 3, 4)
    return ellipse(rows, columns, LESION_CENTRE, LESION_RADII, tilt=LESION_TILT) + wobble


def _tissue(rng: np.random.Generator, rows: Field, columns: Field) -> Field:
    """Mean echo in dB: skin, subcutaneous fat, gland, retromammary fat, pectoral muscle, rib."""
    width = SIZE[1]
    fat = 16 + 1.5 * random_curve(rng, width, 40)
    gland = 78 + 9 * random_curve(rng, width, 45)
    retro = 244 + 8 * random_curve(rng, width, 60)
    muscle = 262 + 7 * random_curve(rng, width, 70)
    deep = 334 + 8 * random_curve(rng, width, 80)
    streaks = random_field(rng, SIZE, 1.7, 15) + 0.7 * random_field(rng, SIZE, 4, 34)
    lobules = random_field(rng, SIZE, 11, 22)
    fibres = np.sin((rows + 0.09 * columns + 5 * random_field(rng, SIZE, 25, 60)) / 2.7)
    echo = np.full(SIZE, -3.0) + 2 * streaks
    for border, tissue in (
        (fat, -15.0 + 3.5 * lobules + 2.0 * streaks),
        (gland, -3.0 + 3.4 * streaks + 3.4 * lobules),
        (retro, -16.0 + 3.0 * streaks),
        (muscle, -14.0 + 4.0 * fibres + 2.5 * streaks),
        (deep, -25.0 + 3.0 * streaks),
    ):
        below = soft(border[np.newaxis, :] - rows, 5.0)
        echo = echo + below * (tissue - echo)
    return np.asarray(echo)


def _behind(lesion: Field, rows: Field, columns: Field) -> Field:
    """Enhancement behind the lesion, and thin shadows behind its edges, in dB."""
    path = np.cumsum(soft(lesion, 2.0), axis=0)
    depth_behind = (rows - LESION_CENTRE[0] - LESION_RADII[0]).clip(0)
    fade = np.exp(-depth_behind / 130.0) * soft(LESION_CENTRE[0] - rows, 30.0)
    enhancement = 0.105 * smooth(path, 0.1, 5.0) * fade
    outside = 1.0 - soft(lesion, 2.0)
    reach = LESION_RADII[1] - 3 + 0.03 * depth_behind
    aside = np.abs(columns - LESION_CENTRE[1]) - reach
    edges = np.exp(-((aside / 6.0) ** 2))
    return np.asarray(outside * (enhancement * soft(LESION_CENTRE[0] - rows, 8.0) - 9.0 * edges * fade))


def _speckle(rng: np.random.Generator, amplitude: Field) -> Field:
    """Envelope of scatterers (Rayleigh speckle); the point spread widens with depth, looks are compounded."""
    depth = np.linspace(0.0, 1.0, SIZE[0])[:, np.newaxis]
    looks = 0.0 * amplitude
    for _ in range(LOOKS):
        real, imaginary = (amplitude * rng.standard_normal(SIZE) for _ in range(2))
        near = (smooth(real, 0.9, 2.0) ** 2 + smooth(imaginary, 0.9, 2.0) ** 2) * 5.6
        far = (smooth(real, 1.2, 3.6) ** 2 + smooth(imaginary, 1.2, 3.6) ** 2) * 12.0
        looks += near * (1 - depth) + far * depth
    return np.asarray(np.sqrt(looks / LOOKS))


def _reflectors(rng: np.random.Generator, rows: Field, columns: Field) -> Field:
    """Skin lines, septa, fasciae and the rib's surface: smooth interfaces that reflect as a whole."""
    width = SIZE[1]
    lines = 0.0 * rows
    for depth, waviness, strength, thickness in (
        (2.5, 0.4, 1.4, 1.3), (13.5, 1.2, 1.1, 1.2), (78, 9.0, 0.55, 1.1), (244, 7.0, 0.8, 1.4),
        (262, 6.0, 1.1, 1.6), (288, 5.0, 0.6, 1.2), (334, 7.0, 0.65, 1.8),
    ):  # fmt: skip
        course = depth + waviness * random_curve(rng, width, 40)
        bright = strength * (0.55 + 0.45 * random_curve(rng, width, 14)).clip(0.05)
        lines = lines + bright * np.exp(-(((rows - course[np.newaxis, :]) / thickness) ** 2))
    for _ in range(7):
        top, left, length = rng.uniform(22, 70), rng.uniform(-30, width - 60), rng.uniform(60, 150)
        slope, strength = rng.uniform(-0.16, 0.16), rng.uniform(0.12, 0.4)
        course = top + slope * (columns - left) + 2.5 * np.sin((columns - left) / length * 4.0 + top)
        extent = soft(left - columns, 30.0) * soft(columns - left - length, 30.0)
        lines = lines + strength * extent * np.exp(-(((rows - course) / rng.uniform(1.0, 2.0)) ** 2))
    return np.asarray(lines * np.exp(0.45 * random_field(rng, SIZE, 0.9, 3.0)))


def _gain_db(rows: Field) -> Field:
    """Time gain compensation that does not quite reach the deep part."""
    depth = rows / SIZE[0]
    return np.asarray(2.0 * np.exp(-((depth - 0.35) ** 2) / 0.08) - 46.0 * (depth - 0.62).clip(0) ** 1.3)
