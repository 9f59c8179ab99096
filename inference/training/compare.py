"""Puts the reports of rivals beside a package's own: one JSON, one table.

    python -m inference.training.compare --into inference/packages/sim4seg-s/metrics.json unet=unet.json

Each rival was scored by `inference.training.evaluate` on the same rows; it becomes a variant of its name.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from inference.training.evaluate import table

Report = dict[str, Any]


class NotComparable(ValueError):
    """Two reports that were not made on the same images."""


def beside(report: Report, rivals: dict[str, Report]) -> Report:
    """`report` with each of `rivals` as a variant; one that is there by that name is replaced.

    Raises
    ------
    NotComparable
        If a rival was scored on other images.
    """
    for name, rival in rivals.items():
        if images_of(rival) != images_of(report):
            raise NotComparable(
                f"{name} was scored on other images: {images_of(rival)}, not {images_of(report)}"
            )
    added = {name: {"datasets": one["datasets"], "all": one["all"]} for name, one in rivals.items()}
    return {**report, "variants": {**report.get("variants", {}), **added}}


def images_of(report: Report) -> dict[str, int]:
    """How many images of each data set a report speaks of."""
    return {name: scores["images"] for name, scores in sorted(report["datasets"].items())}


def named_report(text: str) -> tuple[str, Report]:
    """`name=file.json` as a name and the report in that file."""
    name, _, path = text.partition("=")
    if not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"wanted NAME=FILE with a report of evaluate, not {text!r}")
    return name, json.loads(Path(path).read_text())


def main() -> None:
    """Write the rivals into the package's report and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=Path, required=True, help="the metrics.json that takes them in")
    parser.add_argument("rivals", nargs="+", type=named_report, metavar="NAME=FILE")
    options = parser.parse_args()
    report = beside(json.loads(options.into.read_text()), dict(options.rivals))
    options.into.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
