"""A run's log as a picture: losses above, validation scores below, over the minutes. SVG, by ReportLab."""

import json
from pathlib import Path
from typing import Any

from reportlab.graphics import renderSVG
from reportlab.graphics.charts.legends import Legend
from reportlab.graphics.charts.lineplots import LinePlot
from reportlab.graphics.shapes import Drawing, String
from reportlab.lib import colors

WIDTH, HEIGHT, MARGIN = 640, 260, 40  # points, of each panel
NO_CURVES = {"step", "minutes", "side", "lr", "images_per_s"}
COLOURS = [
    colors.HexColor(code) for code in (0x1B6CA8, 0xC44E34, 0x2E8B57, 0x8A5FB0, 0xB8860B, 0x4C4C4C, 0xD0749B)
]
Curves = dict[str, list[tuple[float, float]]]


def draw_curves(log: Path, picture: Path) -> None:
    """Draw the lines of `log` (one JSON object each, as a run writes them) into `picture`.

    A line without `images_per_s` is a score, another one the mean losses since the line before.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    scores = [line for line in lines if not line["images_per_s"]]
    losses = [line for line in lines if line["images_per_s"]]
    panels = [("validation", curves_of(scores)), ("losses", curves_of(losses))]
    drawing = Drawing(WIDTH, HEIGHT * len(panels))
    for i, (title, curves) in enumerate(panels):
        if curves:
            _draw_panel(drawing, i * HEIGHT, title, curves)
    renderSVG.drawToFile(drawing, str(picture))


def curves_of(lines: list[dict[str, Any]]) -> Curves:
    """(minutes, value) of every number that the lines give, by name."""
    curves: Curves = {}
    for line in lines:
        for name, value in line.items():
            if name not in NO_CURVES:
                curves.setdefault(name, []).append((line["minutes"], value))
    return curves


def _draw_panel(drawing: Drawing, bottom: int, title: str, curves: Curves) -> None:
    plot = LinePlot()
    plot.x, plot.y = MARGIN, bottom + MARGIN
    plot.width, plot.height = WIDTH - 5 * MARGIN, HEIGHT - 2 * MARGIN
    plot.data = list(curves.values())
    plot.xValueAxis.valueMin = plot.yValueAxis.valueMin = 0
    named = list(zip((COLOURS * len(curves))[: len(curves)], curves, strict=True))
    for i, (colour, _) in enumerate(named):
        plot.lines[i].strokeColor = colour
    legend = Legend()
    legend.x, legend.y, legend.fontSize = WIDTH - 4 * MARGIN + 10, bottom + HEIGHT - MARGIN, 7
    legend.columnMaximum, legend.dy, legend.deltay, legend.alignment = 24, 5, 8, "right"
    legend.colorNamePairs = named
    drawing.add(String(MARGIN, bottom + HEIGHT - 25, f"{title}, over minutes", fontSize=10))
    drawing.add(plot)
    drawing.add(legend)
