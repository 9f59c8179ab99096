"""Smooth random fields and soft shapes, from which the synthetic samples are drawn."""

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]  # (H, W)


def smooth(image: Field, down: float, across: float) -> Field:
    """Blur `image` (H, W) by Gaussians of `down` and `across` pixels; borders are mirrored."""
    margin = int(3.5 * max(down, across)) + 1
    spare = [_fast_length(length + 2 * margin) - length - margin for length in image.shape]
    padded = np.pad(image, [(margin, more) for more in spare], mode="symmetric")
    rows = np.fft.fftfreq(padded.shape[0])[:, np.newaxis]
    columns = np.fft.rfftfreq(padded.shape[1])[np.newaxis, :]
    response = np.exp(-2 * np.pi**2 * ((rows * down) ** 2 + (columns * across) ** 2))
    blurred = np.fft.irfft2(np.fft.rfft2(padded) * response, s=padded.shape)
    return np.asarray(blurred[margin : margin + image.shape[0], margin : margin + image.shape[1]])


def _fast_length(length: int) -> int:
    """The next length that is made of the factors 2, 3 and 5, which a Fourier transform likes."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def random_field(rng: np.random.Generator, size: tuple[int, int], down: float, across: float) -> Field:
    """Noise of mean 0 and deviation 1, smooth over `down` and `across` pixels."""
    field = smooth(rng.standard_normal(size), down, across)
    return np.asarray((field - field.mean()) / field.std())


def random_curve(rng: np.random.Generator, count: int, scale: float) -> Field:
    """A wavy line (count,) of mean 0 and deviation 1, smooth over `scale` pixels."""
    curve = smooth(rng.standard_normal((1, count)), 0.0, scale)[0]
    return np.asarray((curve - curve.mean()) / curve.std())


def soft(distance: Field, width: float = 1.0) -> Field:
    """1 inside (distance < 0), 0 outside, with an edge `width` pixels wide."""
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(distance * (4.0 / width), -60.0, 60.0))))


def ellipse(
    rows: Field, columns: Field, centre: tuple[float, float], radii: tuple[float, float], *, tilt: float = 0.0
) -> Field:
    """Roughly the distance in pixels from the border of an ellipse, negative inside; `tilt` in radians."""
    down, across = rows - centre[0], columns - centre[1]
    along = down * np.cos(tilt) + across * np.sin(tilt)
    aside = across * np.cos(tilt) - down * np.sin(tilt)
    reach = np.sqrt((along / radii[0]) ** 2 + (aside / radii[1]) ** 2)
    return np.asarray((reach - 1.0) * min(radii))
