"""A model package: graphs, tokenizer, cards, and model.toml with the sha256 of every file.

    python -m inference.export.package --package inference/packages/sim4seg-s --version 0.1.0

puts the numbers of metrics.json into MODEL_CARD.md and writes model.toml anew.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from inference.models.checkpoints import sha256
from inference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from inference.prompts import ANSWER_CUE, DIAGNOSES

NAME = "sim4seg-s"
LICENCE = "Apache-2.0 for the weights; research use only; attributions of the training data in MODEL_CARD.md"
MAX_QUERY_TOKENS, MAX_NEW_TOKENS = 48, 128
MARKS = ("<!-- results: made by inference.export.package -->", "<!-- end of results -->")
COLUMNS = ("dice", "giou", "ciou", "balanced_accuracy")


def write_manifest(folder: Path, version: str, *, top_k: int = 36, grid: int = 16, side: int = 256) -> None:
    """Write `folder`/model.toml, listing every other file there."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "model.toml")
    files = "\n".join(f'"{name}" = "{sha256(folder / name)}"' for name in names)
    text = f"""[model]
name = "{NAME}"
version = "{version}"
family = "sim4seg"
licence = "{LICENCE}"

[input]
side = {side}
mean = {list(IMAGENET_MEAN)}
std = {list(IMAGENET_STD)}

[region]
grid = {grid}
top_k = {top_k}

[text]
tokenizer = "tokenizer.json"
max_query_tokens = {MAX_QUERY_TOKENS}
max_new_tokens = {MAX_NEW_TOKENS}
answer_cue = {json.dumps(ANSWER_CUE)}

[labels]
diagnoses = {json.dumps(list(DIAGNOSES))}

[files]
{files}
"""
    (folder / "model.toml").write_text(text)


def results_table(metrics: dict[str, Any]) -> str:
    """metrics.json as a Markdown table; a dash where nothing was measured."""
    head = "| data set | images | Dice | gIoU | cIoU | balanced accuracy | majority class | well-formed |"
    rows = [_row(name, scores) for name, scores in sorted(metrics["datasets"].items())]
    return "\n".join([head, "|---|--:|--:|--:|--:|--:|--:|--:|", *rows])


def _row(name: str, scores: dict[str, Any]) -> str:
    cells = [name, str(scores["images"]), *(_interval(scores.get(column)) for column in COLUMNS)]
    chance = scores.get("majority_balanced_accuracy")
    cells += ["-" if chance is None else f"{chance:.3f}", f"{scores['well_formed_rate']:.3f}"]
    return f"| {' | '.join(cells)} |"


def _interval(score: dict[str, float] | None) -> str:
    return "-" if score is None else f"{score['mean']:.3f} ({score['low']:.3f}-{score['high']:.3f})"


def write_results(card: Path, metrics: Path) -> None:
    """Put the table of `metrics` between the marks of `card`."""
    text = card.read_text()
    before, rest = text.split(MARKS[0], 1)
    after = rest.split(MARKS[1], 1)[1]
    table = results_table(json.loads(metrics.read_text()))
    card.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")


def main() -> None:
    """Finish a package whose graphs and scores are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--version", required=True)
    options = parser.parse_args()
    write_results(options.package / "MODEL_CARD.md", options.package / "metrics.json")
    write_manifest(options.package, options.version)


if __name__ == "__main__":
    main()
