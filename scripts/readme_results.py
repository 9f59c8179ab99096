"""Write or check the README's accuracy table, from what the model packages say they measured."""

import json
import sys
from pathlib import Path
from typing import Any

try:
    from scripts.readme_map import REPOSITORY, run
except ModuleNotFoundError:  # started by its path
    from readme_map import REPOSITORY, run

MARKERS = ("<!-- results: made by scripts/readme_results.py -->", "<!-- end of results -->")
PACKAGES = Path("inference/packages")
MAIN, OTHERS = "sim4seg-s", ("prs-med-s", "medseg-r-s")
RIVAL = "unet"  # a variant in MAIN's report; shown where it has been measured


def interval(score: dict[str, float] | None) -> str:
    """`0.812 (0.790-0.833)`: the mean and its 95 % bootstrap interval; a dash where nothing was measured."""
    if score is None:
        return "-"
    return f"{score['mean']:.3f} ({score['low']:.3f}-{score['high']:.3f})"


def row(name: str, scores: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """One line of the table: a data set, its scores, and the Dice of the other models."""
    majority = scores.get("majority_accuracy")
    cells = [
        name,
        str(scores["images"]),
        *(interval(each.get("dice")) for each in (scores, *others)),
        interval(scores.get("balanced_accuracy")),
        interval(scores.get("accuracy")),
        "-" if majority is None else f"{majority:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def render(repository: Path) -> str:
    """The table as Markdown; one sentence while there are no measurements."""
    measured = {name: repository / PACKAGES / name / "metrics.json" for name in (MAIN, *OTHERS)}
    reports = {name: json.loads(path.read_text()) for name, path in measured.items() if path.is_file()}
    if MAIN not in reports:
        return "No model package has been measured yet."
    datasets: dict[str, Any] = {name: report["datasets"] for name, report in reports.items()}
    if rival := reports[MAIN].get("variants", {}).get(RIVAL):
        datasets["U-Net"] = rival["datasets"]
    models = " | ".join(f"Dice, {name}" for name in datasets)
    others = [each for name, each in datasets.items() if name != MAIN]
    lines = [
        f"| data set | images | {models} | balanced accuracy, {MAIN} | accuracy | majority class |",
        f"|---|--:|{'--:|' * len(datasets)}--:|--:|--:|",
        *(
            row(name, scores, [each[name] for each in others])
            for name, scores in sorted(datasets[MAIN].items())
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(render(REPOSITORY), MARKERS, sys.argv[1:]))
