"""A synthetic radiograph of a lower leg from knee to ankle: the tibia is broken obliquely and displaced."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.samples_noise import Field, ellipse, random_curve, random_field, smooth, soft

SIZE = (454, 373)
SPACING_MM = (1.0, 1.0)
FRACTURE_ROW = 268.0
FRACTURE_SLOPE = 1.25  # rows down per column to the right
SHIFT_PX, TURN = 7.5, 0.075  # how far the lower fragment is displaced, and its angle
MARK_PX = 9.0  # the true mask reaches so far to both sides of the line
KNEE_ROW, ANKLE_ROW = 72.0, 402.0


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
    bones = fragments + 0.85 * _tube(rng, fibula, columns) + _knee_and_ankle(rng, rows, columns)
    soft_tissue = _soft_tissue(rng, rows, columns)
    attenuation = 0.0150 * soft_tissue + 0.062 * bones
    image = _expose(rng, attenuation, columns)
    inside = np.maximum(np.abs(columns - tibia.centre - 3.0) - tibia.radius - 6.0, np.abs(line) - MARK_PX)
    return image, inside < 0


def _fracture_line(rng: np.random.Generator, rows: Field, columns: Field) -> Field:
    """Distance from the fracture, negative above it."""
    jagged = 3.2 * random_curve(rng, SIZE[1], 3.0) + 2.5 * random_curve(rng, SIZE[1], 9.0)
    course = FRACTURE_ROW + FRACTURE_SLOPE * (columns - 176.0) + jagged[np.newaxis, :]
    return np.asarray((rows - course) / np.hypot(1.0, FRACTURE_SLOPE))


def _tibia(rng: np.random.Generator, rows: Field) -> _Bone:
    along = rows[:, :1] / SIZE[0]
    wavy = random_curve(rng, SIZE[0], 70)[:, np.newaxis]
    centre = 172.0 + 7.0 * np.sin(along * 3.0) + 0.8 * wavy
    flare = 24.0 * np.exp(-(((along - 0.17) / 0.085) ** 2)) + 11.0 * np.exp(-(((along - 0.89) / 0.09) ** 2))
    ends = soft(KNEE_ROW + 6.0 - rows[:, :1], 3.0) * soft(rows[:, :1] - ANKLE_ROW, 3.0)
    radius = (14.5 - 2.0 * along + flare + 0.4 * wavy) * ends + 0.01
    cortex = 4.6 * np.exp(-(((along - 0.52) / 0.22) ** 2)) + 1.2
    return _Bone(centre, radius, cortex)


def _fibula(rng: np.random.Generator, rows: Field) -> _Bone:
    along = rows[:, :1] / SIZE[0]
    wavy = random_curve(rng, SIZE[0], 60)[:, np.newaxis]
    centre = 216.0 - 12.0 * np.sin(along * 3.0) + 1.4 * wavy
    ends = soft(KNEE_ROW + 26.0 - rows[:, :1], 3.0) * soft(rows[:, :1] - ANKLE_ROW - 14.0, 3.0)
    radius = (
        5.5 + 4.0 * np.exp(-(((along - 0.24) / 0.05) ** 2)) + 4.0 * np.exp(-(((along - 0.9) / 0.06) ** 2))
    )
    cortex = 2.2 - 0.8 * np.exp(-(((along - 0.24) / 0.07) ** 2))
    return _Bone(centre, (radius + 0.3 * wavy) * ends + 0.01, cortex)


def _knee_and_ankle(rng: np.random.Generator, rows: Field, columns: Field) -> Field:
    """Path through the end of the femur with its condyles, and through talus and foot, seen end on."""
    spongy = 1.0 + 0.10 * random_field(rng, SIZE, 2.0, 2.0)
    up = (KNEE_ROW - 26.0 - rows).clip(0.0)
    shaft = np.abs(columns - 175.0) - 16.0 - 22.0 * np.exp(-((up / 17.0) ** 2))
    condyles = [ellipse(rows, columns, (KNEE_ROW - 19.0, c), (18.5, 19.5)) for c in (157.0, 194.0)]
    femur = np.minimum(np.maximum(shaft, rows - KNEE_ROW + 20.0), np.minimum(*condyles))
    talus = ellipse(rows, columns, (ANKLE_ROW + 25.0, 181.0), (20.0, 24.0))
    foot = ellipse(rows, columns, (ANKLE_ROW + 60.0, 178.0), (34.0, 30.0))
    path = 0.0 * rows
    for distance, depth in ((femur, 15.0), (talus, 15.0), (foot, 20.0)):
        rim = np.exp(-(((distance + 1.5) / 2.2) ** 2))
        path = path + soft(distance, 2.5) * depth * (0.72 + 0.35 * rim)
    return np.asarray(smooth(path * spongy, 0.7, 0.7))


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
    """Path through skin, fat and muscle: thigh, knee, calf, ankle, foot."""
    along = rows[:, :1] / SIZE[0]
    calf = 21.0 * np.exp(-(((along - 0.42) / 0.20) ** 2)) + 12.0 * np.exp(-(((along - 0.02) / 0.16) ** 2))
    foot = 10.0 * np.exp(-(((along - 1.0) / 0.07) ** 2))
    half = 58.0 + calf + foot - 30.0 * along + 1.5 * random_curve(rng, SIZE[0], 60)[:, np.newaxis]
    centre = 184.0 + 7.0 * np.sin(along * 4.0)
    reach = ((columns - centre) / half).clip(-1.0, 1.0)
    body = 1.30 * half * (1.0 - np.abs(reach) ** 2.6) ** 0.62
    muscle_reach = ((columns - centre - 3.0) / (half - 8.0)).clip(-1.0, 1.0)
    muscle = 0.40 * half * (1.0 - np.abs(muscle_reach) ** 3) ** 0.6
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
    return np.floor(_plate(grey) + 0.8 * rng.standard_normal(SIZE)).clip(0, 255).astype(np.uint8)


def _plate(grey: Field) -> Field:
    """The edge of the plate, which was not exposed, and the marker of the side."""
    marked = grey.copy()
    marked[-9:, :] = 236.0
    marked[:5, :] = 228.0
    marked[150:178, 318:340] = 240.0
    marked[155:173, 324:327] = 20.0  # an L
    marked[170:173, 324:335] = 20.0
    return smooth(marked, 0.5, 0.5)
