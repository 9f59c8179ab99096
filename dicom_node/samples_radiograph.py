"""A synthetic radiograph of the lower leg: tibia and fibula in soft tissue, the tibia broken obliquely."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.samples_noise import Field, random_curve, random_field, smooth, soft

SIZE = (512, 400)
SPACING_MM = (0.7, 0.7)
FRACTURE_ROW = 292.0
FRACTURE_SLOPE = 0.85  # rows down per column to the right
SHIFT_PX, TURN = 5.5, 0.055  # how far the lower fragment is displaced, and its angle
MARK_PX = 8.0  # the true mask reaches so far to both sides of the line


@dataclass(frozen=True)
class _Bone:
    """A tapering tube along the image's rows; every entry (H, W) or (H, 1), in pixels."""

    centre: Field
    radius: Field
    cortex: Field


def make_leg_radiograph(seed: int = 5) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Grey levels (H, W) and the true mask (H, W) of the fracture."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    line = _fracture_line(rng, rows, columns)
    tibia, fibula = _tibia(rng, rows), _fibula(rng, rows)
    whole = _tube(rng, tibia, columns)
    lower = _tube(rng, _displaced(tibia, rows), columns)
    fragments = whole * soft(line + 0.9, 1.4) + lower * soft(-line + 0.9, 1.4)
    bones = fragments + 0.85 * _tube(rng, fibula, columns)
    soft_tissue = _soft_tissue(rng, rows, columns)
    attenuation = 0.0150 * soft_tissue + 0.040 * bones
    image = _expose(rng, attenuation, columns)
    inside = np.maximum(np.abs(columns - tibia.centre - 2.0) - tibia.radius - 5.0, np.abs(line) - MARK_PX)
    return image, inside < 0


def _fracture_line(rng: np.random.Generator, rows: Field, columns: Field) -> Field:
    """Distance from the fracture, negative above it."""
    jagged = 3.2 * random_curve(rng, SIZE[1], 3.0) + 2.5 * random_curve(rng, SIZE[1], 9.0)
    course = FRACTURE_ROW + FRACTURE_SLOPE * (columns - 192.0) + jagged[np.newaxis, :]
    return np.asarray((rows - course) / np.hypot(1.0, FRACTURE_SLOPE))


def _tibia(rng: np.random.Generator, rows: Field) -> _Bone:
    along = rows[:, :1] / SIZE[0]
    wavy = random_curve(rng, SIZE[0], 70)[:, np.newaxis]
    centre = 186.0 + 16.0 * np.sin(along * 2.1) + 1.2 * wavy
    flare = 26.0 * np.exp(-(((along + 0.06) / 0.17) ** 2)) + 13.0 * np.exp(-(((along - 1.06) / 0.14) ** 2))
    radius = 24.0 - 3.0 * along + flare + 0.5 * wavy
    cortex = 7.4 * np.exp(-(((along - 0.52) / 0.36) ** 2)) + 1.7
    return _Bone(centre, radius, cortex)


def _fibula(rng: np.random.Generator, rows: Field) -> _Bone:
    along = rows[:, :1] / SIZE[0]
    wavy = random_curve(rng, SIZE[0], 60)[:, np.newaxis]
    centre = 262.0 - 9.0 * np.sin(along * 3.0) + 2.2 * wavy
    radius = (
        10.5 + 6.5 * np.exp(-(((along - 0.04) / 0.08) ** 2)) + 5.0 * np.exp(-(((along - 1.0) / 0.1) ** 2))
    )
    cortex = 3.6 - 1.5 * np.exp(-(((along - 0.04) / 0.1) ** 2))
    return _Bone(centre, radius + 0.4 * wavy, cortex)


def _displaced(bone: _Bone, rows: Field) -> _Bone:
    """The lower fragment, shifted to the right and turned about the fracture."""
    turned = bone.centre + SHIFT_PX + TURN * (rows[:, :1] - FRACTURE_ROW).clip(-40)
    return _Bone(turned, bone.radius, bone.cortex)


def _tube(rng: np.random.Generator, bone: _Bone, columns: Field) -> Field:
    """Path of the ray through cortex, and through the spongy inside, which counts a fifth."""
    across = columns - bone.centre
    inner = (bone.radius - bone.cortex).clip(1.0)
    outer_path = 2.0 * np.sqrt((bone.radius**2 - across**2).clip(0.0))
    inner_path = 2.0 * np.sqrt((inner**2 - across**2).clip(0.0))
    trabeculae = 1.0 + 0.20 * random_field(rng, SIZE, 5.0, 0.9) + 0.12 * random_field(rng, SIZE, 1.0, 1.0)
    cortex = (outer_path - inner_path) * (1.0 + 0.05 * random_field(rng, SIZE, 12.0, 1.2))
    return np.asarray(smooth(cortex + 0.20 * inner_path * trabeculae, 0.5, 0.5))


def _soft_tissue(rng: np.random.Generator, rows: Field, columns: Field) -> Field:
    """Path through skin, fat and muscle; the calf on the right side."""
    along = rows[:, :1] / SIZE[0]
    left = 128.0 + 16.0 * along + 2.5 * random_curve(rng, SIZE[0], 60)[:, np.newaxis]
    calf = 44.0 * np.exp(-(((along - 0.22) / 0.30) ** 2))
    right = 306.0 + calf - 26.0 * along + 3.0 * random_curve(rng, SIZE[0], 60)[:, np.newaxis]
    centre, half = (left + right) / 2.0, (right - left) / 2.0
    reach = ((columns - centre) / half).clip(-1.0, 1.0)
    body = 1.05 * half * (1.0 - np.abs(reach) ** 2.6) ** 0.62
    muscle_reach = ((columns - centre - 3.0) / (half - 11.0)).clip(-1.0, 1.0)
    muscle = 0.34 * half * (1.0 - np.abs(muscle_reach) ** 3) ** 0.6
    fibres = 1.0 + 0.035 * random_field(rng, SIZE, 60.0, 5.0) + 0.03 * random_field(rng, SIZE, 18.0, 18.0)
    return np.asarray((body + muscle * fibres) * (1.0 + 0.02 * random_field(rng, SIZE, 30.0, 30.0)))


def _expose(rng: np.random.Generator, attenuation: Field, columns: Field) -> NDArray[np.uint8]:
    """Beam with heel effect, scatter, quantum noise, the plate's lines, the display's log and S-curve."""
    beam = 1.0 + 0.06 * (columns / SIZE[1] - 0.5)
    primary = beam * np.exp(-attenuation)
    scatter = 0.17 * smooth(primary * (1 - np.exp(-attenuation)), 28.0, 28.0)
    photons = 5200.0 * smooth(primary + scatter, 0.55, 0.55)
    counted = photons + np.sqrt(photons) * rng.standard_normal(SIZE)
    lines = 0.010 * random_curve(rng, SIZE[1], 3.0)[np.newaxis, :] + 0.012 * random_field(
        rng, SIZE, 90.0, 90.0
    )
    density = -np.log((counted / 5200.0).clip(1e-4)) + lines
    sharpened = density + 0.35 * (density - smooth(density, 6.0, 6.0))
    grey = 12.0 + 225.0 / (1.0 + np.exp(-(smooth(sharpened, 0.4, 0.4) - 2.45) * 1.15)) - 3.0
    return np.floor(grey + 0.8 * rng.standard_normal(SIZE)).clip(0, 255).astype(np.uint8)
