"""Write or check the README's accuracy table, from what the model package says it measured."""

import json
import sys
from pathlib import Path
from typing import Any

try:
    from scripts.readme_map import REPOSITORY, run
except ModuleNotFoundError:  # started by its path
    from readme_map import REPOSITORY, run

MARKERS = ("<!-- results: made by scripts/readme_results.py -->", "<!-- end of results -->")
METRICS = Path("inference/packages/sim4seg-s/metrics.json")


def interval(score: dict[str, float] | None) -> str:
    """`0.812 (0.790-0.833)`: the mean and its 95 % bootstrap interval; a dash where nothing was measured."""
    if score is None:
        return "-"
    return f"{score['mean']:.3f} ({score['low']:.3f}-{score['high']:.3f})"


def row(name: str, scores: dict[str, Any]) -> str:
    """One line of the table: a data set and its scores."""
    majority = scores.get("majority_accuracy")
    cells = [
        name,
        str(scores["images"]),
        interval(scores.get("dice")),
        interval(scores.get("balanced_accuracy")),
        interval(scores.get("accuracy")),
        "-" if majority is None else f"{majority:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def render(repository: Path) -> str:
    """The table as Markdown; one sentence while there are no measurements."""
    path = repository / METRICS
    if not path.is_file():
        return "No model package has been measured yet."
    metrics = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "| data set | images | Dice | balanced accuracy | accuracy | majority class |",
        "|---|--:|--:|--:|--:|--:|",
        *(row(name, scores) for name, scores in sorted(metrics["datasets"].items())),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(render(REPOSITORY), MARKERS, sys.argv[1:]))
