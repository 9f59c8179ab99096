"""A synthetic short-axis cardiac MR cine (SSFP): a wide heart that beats weakly, and what surrounds it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dicom_node.samples_noise import Field, ellipse, random_curve, random_field, smooth, soft

SIZE = (256, 256)
SPACING_MM = (1.4, 1.4)
SLICE_SPACING_MM = 10.0
SLICES = 6
LAST_DEPTH = 0.66  # of the last slice: 0 is the base, 1 the apex
TRIGGER_TIMES_MS = (0.0, 160.0, 320.0)  # of the phases: the filled heart, half way, end of systole
CONTRACTION = (1.0, 0.92, 0.84)  # of the cavity's radius in each phase: a wide heart that beats weakly
HEART = (122.0, 150.0)  # centre of the left ventricle, row and column
FIELD_OF_VIEW_PX = 116.0
BLOOD, MUSCLE, FAT, LIVER, LUNG = 0.60, 0.20, 0.85, 0.27, 0.035


@dataclass(frozen=True)
class _Scene:
    """What all slices share."""

    rng: np.random.Generator
    rows: Field
    columns: Field
    wobble: Field  # smooth noise in pixels, so that no border is a perfect ellipse


def make_cardiac_cine(
    seed: int = 11,
) -> tuple[list[list[NDArray[np.uint8]]], list[list[NDArray[np.bool_]]]]:
    """Grey levels (H, W) by slice (base first) and phase, and the true masks of the left cavity."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    scene = _Scene(rng, rows, columns, 1.6 * random_field(rng, SIZE, 16, 16))
    chest, shading = _chest(scene), _coil_shading(scene)
    view = soft(ellipse(rows, columns, (128.0, 126.0), (FIELD_OF_VIEW_PX, FIELD_OF_VIEW_PX)), 0.8)
    images: list[list[NDArray[np.uint8]]] = []
    masks: list[list[NDArray[np.bool_]]] = []
    for number in range(SLICES):
        depth = LAST_DEPTH * number / (SLICES - 1)
        beat = []
        for contraction in CONTRACTION:  # the same anatomy in every phase: only the heart moves
            still = replace(scene, rng=np.random.default_rng([seed, number]))
            signal, cavity = _slice(still, chest, depth, contraction)
            beat.append((_acquire(scene, signal * shading, view), cavity))
        images.append([image for image, _ in beat])
        masks.append([cavity for _, cavity in beat])
    return images, masks


def _paint(image: Field, distance: Field, value: Field | float, width: float = 1.4) -> Field:
    inside = soft(distance, width)
    return np.asarray(image * (1 - inside) + inside * value)


def _slice(scene: _Scene, chest: Field, depth: float, contraction: float) -> tuple[Field, NDArray[np.bool_]]:
    """Signal (H, W) and cavity (H, W) of the slice at `depth`: 0 base, 1 apex."""
    rows, columns, rng = scene.rows, scene.columns, scene.rng
    image = _lungs_and_belly(scene, chest, depth)
    centre = (HEART[0] + 7 * depth, HEART[1] + 5 * depth)
    shrink = float(np.sqrt(max(1 - (0.93 * depth) ** 2.2, 0.03)))
    filled = 25.5 * shrink
    inner = filled * contraction
    # the wall keeps its volume: it thickens as the cavity shrinks
    outer = float(np.sqrt(inner**2 + (filled + 8.0 + 1.0 * (1 - depth)) ** 2 - filled**2))
    wobble = 0.6 * scene.wobble + 0.8 * random_field(rng, SIZE, 9, 9)
    ventricle = ellipse(rows, columns, centre, (inner * 1.03, inner * 0.97), tilt=0.4) + wobble
    wall = ellipse(rows, columns, centre, (outer * 1.02, outer * 0.98), tilt=0.4) + 0.5 * wobble
    right = _right_ventricle(scene, centre, outer, depth, squeeze=contraction)
    surface = np.minimum(wall, right - 3.5)
    image = _paint(image, surface - 3.2, 0.50 * FAT * (0.75 + 0.25 * random_field(rng, SIZE, 5, 5)), 2.0)
    image = _paint(image, surface - 0.9, 0.05, 1.2)  # pericardium and chemical shift: a dark line
    blood = BLOOD * (1 + 0.13 * random_field(rng, SIZE, 6, 6) + 0.05 * random_field(rng, SIZE, 1.5, 1.5))
    image = _paint(image, right - 2.6, MUSCLE * 1.1)
    image = _paint(image, right, blood * 0.97)
    image = _trabeculae(scene, image, right, depth)
    image = _paint(
        image,
        wall,
        MUSCLE * (1 + 0.07 * random_field(rng, SIZE, 5, 5) + 0.08 * random_field(rng, SIZE, 1.2, 1.2)),
    )
    image = _paint(image, ventricle, blood)
    image = _papillary_muscles(scene, image, centre, inner, depth)
    return image, ventricle < 0


def _right_ventricle(
    scene: _Scene, centre: tuple[float, float], outer: float, depth: float, *, squeeze: float
) -> Field:
    """A crescent to the left of the septum, gone near the apex."""
    size = max(1 - 1.05 * depth**1.6, 0.03) * (0.4 + 0.6 * squeeze)
    body = ellipse(
        scene.rows,
        scene.columns,
        (centre[0] - 5, centre[1] - 27 + 8 * depth),
        (33 * size, 31 * size),
        tilt=0.35,
    )
    septum = ellipse(scene.rows, scene.columns, centre, (outer + 1.0, outer + 1.0))
    return np.asarray(np.maximum(body + 0.9 * scene.wobble, -septum))


def _trabeculae(scene: _Scene, image: Field, right: Field, depth: float) -> Field:
    texture = random_field(scene.rng, SIZE, 2.2, 2.2)
    near_wall = soft(right, 2.0) * soft(-right - 7.0, 4.0)
    return np.asarray(image - 0.22 * (texture > 0.7) * near_wall * (0.6 + depth) * 0.7)


def _papillary_muscles(
    scene: _Scene, image: Field, centre: tuple[float, float], inner: float, depth: float
) -> Field:
    if not 0.2 < depth < 0.85:
        return image
    for angle in (0.75, 2.35):
        spot = (
            centre[0] + 0.60 * inner * np.sin(angle) + scene.rng.normal(0, 0.5),
            centre[1] + 0.60 * inner * np.cos(angle) + scene.rng.normal(0, 0.5),
        )
        blob = ellipse(scene.rows, scene.columns, spot, (3.3, 2.5), tilt=angle) + 0.5 * scene.wobble
        image = _paint(image, blob, MUSCLE * 1.15, 1.8)
    return image


def _chest(scene: _Scene) -> Field:
    """Distance from the inner surface of the chest wall, negative inside the chest."""
    tilted = ellipse(scene.rows, scene.columns, (138.0, 152.0), (132.0, 70.0), tilt=-0.80)
    return np.asarray(tilted + 1.4 * scene.wobble)


def _lungs_and_belly(scene: _Scene, chest: Field, depth: float) -> Field:
    rng = scene.rng
    skin = chest - 21 - 4 * random_field(rng, SIZE, 50, 50)
    image = _paint(np.full(SIZE, 0.004), skin, FAT * (1 + 0.08 * random_field(rng, SIZE, 4, 4)))
    layers = 1 + 0.35 * np.sin(chest * 1.3 + 2 * random_field(rng, SIZE, 12, 12))
    image = _paint(image, chest - 10.0, MUSCLE * 1.3 * layers)
    image = _ribs(scene, image, chest)
    image = _paint(image, chest, LUNG * (1 + 0.3 * random_field(rng, SIZE, 3, 3)))
    image = _lung_vessels(scene, image, chest)
    image = _belly(scene, image, chest, depth)
    aorta = ellipse(scene.rows, scene.columns, (168.0, 196.0), (7.5, 7.0))
    image = _paint(_paint(image, aorta - 1.5, 0.08), aorta, 0.9 * BLOOD)
    return _anterior_fat(scene, image, chest)


def _ribs(scene: _Scene, image: Field, chest: Field) -> Field:
    angle = np.arctan2(scene.rows - 138.0, scene.columns - 152.0)
    between = soft(np.abs(chest - 4.5) - 3.2, 2.0) * (np.sin(angle * 15.0 + 1.0) > 0.1)
    return np.asarray(image * (1 - 0.7 * between) + 0.32 * between * soft(np.abs(chest - 4.5) - 1.2, 2.0))


def _lung_vessels(scene: _Scene, image: Field, chest: Field) -> Field:
    inside = soft(chest + 6.0, 4.0)
    for _ in range(70):
        spot = (scene.rng.uniform(20, 170), scene.rng.uniform(90, 245))
        radius, tilt = scene.rng.uniform(0.7, 2.0), scene.rng.uniform(0, np.pi)
        vessel = ellipse(
            scene.rows, scene.columns, spot, (radius * scene.rng.uniform(1, 3.5), radius), tilt=tilt
        )
        image = image + inside * soft(vessel, 1.5) * scene.rng.uniform(0.03, 0.22)
    return np.asarray(image)


def _belly(scene: _Scene, image: Field, chest: Field, depth: float) -> Field:
    """Diaphragm, liver with its vessels, stomach and spleen, below the heart."""
    rng, columns = scene.rng, scene.columns
    dome = (
        147
        - 4 * depth
        + 0.10 * (columns - 110)
        + 7 * np.sin((columns - 60) / 55.0)
        + 2.0 * random_curve(rng, SIZE[1], 24)[np.newaxis, :]
    )
    below = np.maximum(dome - scene.rows, chest + 1.0)
    image = _paint(image, below - 2.2, 0.5 * FAT, 2.5)
    liver = 1 + 0.06 * random_field(rng, SIZE, 4, 4) + 0.08 * random_field(rng, SIZE, 1.2, 1.2)
    image = _paint(image, below, LIVER * liver)
    for spot, radii, value in (
        ((188.0, 160.0), (15.0, 27.0), 0.11),
        ((196.0, 202.0), (24.0, 14.0), 0.34),
        ((222.0, 128.0), (17.0, 19.0), 0.42),
        ((214.0, 176.0), (12.0, 14.0), 0.40),
    ):
        organ = np.maximum(ellipse(scene.rows, columns, spot, radii) + 1.5 * scene.wobble, below + 1.0)
        texture = 1 + 0.16 * random_field(rng, SIZE, 3, 3)
        image = _paint(_paint(image, organ - 1.6, 0.05), organ, value * texture)
    for _ in range(13):
        spot = (rng.uniform(165, 220), rng.uniform(45, 130))
        vessel = ellipse(
            scene.rows, columns, spot, (rng.uniform(2, 8), rng.uniform(0.9, 2.0)), tilt=rng.uniform(0, np.pi)
        )
        image = _paint(image, np.maximum(vessel, below + 3.0), 0.50, 1.5)
    return np.asarray(image)


def _anterior_fat(scene: _Scene, image: Field, chest: Field) -> Field:
    """Fat between sternum and heart."""
    pad = ellipse(scene.rows, scene.columns, (101.0, 92.0), (30.0, 12.0), tilt=-0.8) + 1.8 * scene.wobble
    return _paint(image, np.maximum(pad, chest + 1.5), 0.55 * FAT, 2.0)


def _coil_shading(scene: _Scene) -> Field:
    """Surface coils: bright at the front (upper left), less at the back."""
    front = np.hypot(scene.rows - 52.0, scene.columns - 62.0)
    back = np.hypot(scene.rows - 215.0, scene.columns - 232.0)
    return np.asarray(0.46 + 1.05 * np.exp(-front / 48.0) + 0.55 * np.exp(-back / 38.0))


def _acquire(scene: _Scene, signal: Field, view: Field) -> NDArray[np.uint8]:
    """Blur of the acquisition, Rician noise, the scanner's round field of view, and its grey scale."""
    blurred = smooth(signal, 0.5, 0.5)
    noisy = np.hypot(
        blurred + 0.013 * scene.rng.standard_normal(SIZE), 0.013 * scene.rng.standard_normal(SIZE)
    )
    return np.floor(205.0 * noisy * view + 0.5).clip(0, 255).astype(np.uint8)
