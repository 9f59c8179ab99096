"""RVLS2M: the closed form against the paper's algorithm done step by step. Prints both times and their ratio.

    python -m inference.training.rvls2m_bench --repeats 20

The direct way (arXiv 2511.06665, Algorithm 1, with the released code's frame; models.md 1.3): similarity of
each image token, min-max, upsampling to the crop, zero padding to the image's aspect, resizing to the image,
mean of each cell, sorting, a mask of 256 pixels painted cell by cell. Cells are those of the padded square.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.models.sim4seg import crop_matrix, region_similarity, top_region

GRID, TOP_K, RENDER, MASK = 16, 36, 336, 256
SHAPES = ((512, 512), (1024, 1024), (2048, 2500))


def direct_region(tokens: Tensor, seg: Tensor, source_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The paper's way: cells' means (16, 16) and the mask prompt (256, 256), 0 or 1.

    tokens (256, C) and seg (C,) are in the space of phi; `source_hw` are the image's pixels.
    """
    image = _similarity_image(tokens, seg, source_hw)
    longest = max(source_hw)
    square = torch.zeros(longest, longest)
    square[: source_hw[0], : source_hw[1]] = image
    edges = [i * longest // GRID for i in range(GRID + 1)]
    means: list[tuple[float, int]] = []
    for row in range(GRID):
        for column in range(GRID):
            cell = square[edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
            means.append((-float(cell.mean()), GRID * row + column))
    mask = torch.zeros(MASK, MASK)
    side = MASK // GRID
    for _, index in sorted(means)[:TOP_K]:
        top, left = index // GRID * side, index % GRID * side
        mask[top : top + side, left : left + side] = 1.0
    return torch.tensor([-value for value, _ in means]).view(GRID, GRID), mask


def _similarity_image(tokens: Tensor, seg: Tensor, source_hw: tuple[int, int]) -> Tensor:
    """Similarity at the image's own size (H, W), zero where the tower's centre crop does not reach."""
    dots = torch.stack([token @ seg for token in tokens]).view(1, 1, GRID, GRID)
    spread = dots.max() - dots.min()
    if spread <= 0:
        return torch.zeros(source_hw)  # a constant map says nothing about place
    rendered = F.interpolate(
        (dots - dots.min()) / spread, (RENDER, RENDER), mode="bilinear", align_corners=False
    )
    tall, wide = (max(RENDER, round(RENDER * n / min(source_hw))) for n in source_hw)
    top, left = (tall - RENDER) // 2, (wide - RENDER) // 2
    padded = F.pad(rendered, (left, wide - RENDER - left, top, tall - RENDER - top))
    return F.interpolate(padded, source_hw, mode="bilinear", align_corners=False)[0, 0]


def closed_region(tokens: Tensor, seg: Tensor, maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Our way: similarity and region (16, 16); `maps` depend on the image's shape alone and are kept."""
    everywhere = torch.ones(1, GRID, GRID)
    similarity = region_similarity(tokens[None], seg[None], everywhere, maps)
    return similarity[0], top_region(similarity, everywhere, TOP_K)[0]


def maps_of(source_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A_h and A_w of an image shape."""
    height, width = (crop_matrix(n, min(source_hw), max(source_hw)) for n in source_hw)
    return height, width


def _median_s(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(source_hw: tuple[int, int], repeats: int) -> dict[str, float | int]:
    """Median seconds of both ways for one image shape, and whether they chose the same cells."""
    generator = torch.Generator().manual_seed(sum(source_hw))
    tokens = torch.randn(GRID**2, 256, generator=generator)
    seg = torch.randn(256, generator=generator)
    maps = maps_of(source_hw)
    _, mask = direct_region(tokens, seg, source_hw)
    _, region = closed_region(tokens, seg, maps)
    same = torch.equal(region, mask[:: MASK // GRID, :: MASK // GRID])
    direct_s = _median_s(lambda: direct_region(tokens, seg, source_hw), repeats)
    closed_s = _median_s(lambda: closed_region(tokens, seg, maps), 10 * repeats)
    return {
        "height": source_hw[0],
        "width": source_hw[1],
        "direct_us": 1e6 * direct_s,
        "closed_us": 1e6 * closed_s,
        "ratio": direct_s / closed_s,
        "same_cells": int(same),
    }


def main() -> None:
    """Measure each shape; a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(shape, options.repeats) for shape in SHAPES]
    print(f"{'image':>12}{'direct':>14}{'closed form':>14}{'ratio':>9}{'same top 36':>13}")
    for row in rows:
        size = f"{row['width']} x {row['height']}"
        print(
            f"{size:>12}{row['direct_us']:>11.0f} us{row['closed_us']:>11.0f} us{row['ratio']:>8.0f}x"
            f"{'yes' if row['same_cells'] else 'NO':>13}"
        )
    print(json.dumps({"benchmark": "rvls2m", "shapes": rows}))


if __name__ == "__main__":
    main()
