"""Masks thresholded and packed eight to a byte inside a graph: 32 kB leave the device, not a megabyte.

At more than the decoder's own resolution the logits are enlarged a strip of rows at a time, each strip is
thresholded and packed before the next: logits of the full size are never held (inference.md, 4 and 9).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THRESHOLD = 0.0  # Source: SAM, `modeling/sam.py`, mask_threshold; a logit of 0 is background
STRIPS = 8


def pack_bits(mask: Tensor) -> Tensor:
    """(..., n) of 0 and 1, n a multiple of 8 -> (..., n / 8) uint8 in the order of `numpy.packbits`."""
    weights = 2.0 ** torch.arange(7, -1, -1, device=mask.device)
    return (mask.unflatten(-1, (-1, 8)).float() @ weights).to(torch.uint8)


def enlarging(inputs: int, outputs: int) -> Tensor:
    """(outputs, inputs): bilinear enlargement of one axis as a matrix, half-pixel centres."""
    eye = torch.eye(inputs)[:, None]
    return F.interpolate(eye, size=outputs, mode="linear", align_corners=False)[:, 0].T.contiguous()


class PackedMasks(nn.Module):
    """Logits (P, 1, s, s) -> bits (P, side, side / 8) uint8 of the square enlarged to `side`."""

    matrix: Tensor

    def __init__(self, low_res: int, side: int, strips: int = STRIPS) -> None:
        """`side` must be a multiple of 8 times the number of strips, and no less than `low_res`.

        Raises
        ------
        ValueError
        """
        super().__init__()
        if side % (8 * strips) or side < low_res:
            raise ValueError(f"a mask of {side} pixels a side cannot be packed in {strips} strips")
        self.is_enlarged, self.rows = side > low_res, side // strips
        self.register_buffer("matrix", enlarging(low_res, side))

    def forward(self, logits: Tensor) -> Tensor:
        """(P, 1, s, s) float -> (P, side, side / 8) uint8."""
        if not self.is_enlarged:
            return pack_bits(logits[:, 0] > THRESHOLD)
        # The bits are the rows' and columns' products: of a strip only its rows are ever made.
        strips = (part @ logits[:, 0] @ self.matrix.T for part in self.matrix.split(self.rows))
        return torch.cat([pack_bits(strip > THRESHOLD) for strip in strips], 1)
