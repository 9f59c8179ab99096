"""A model package: graphs, tokenizer, cards, and model.toml with the sha256 of every file.

    python -m inference.export.package --package inference/packages/sim4seg-s --version 0.1.0

puts the numbers of metrics.json into MODEL_CARD.md and writes model.toml anew.
"""

import argparse
import json
import tomllib
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import onnx

from inference.models.checkpoints import sha256
from inference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from inference.prompts import ANSWER_CUE, DIAGNOSES
from inference.runtime.language_cache import of_layer

GRID = 16  # cells a side
LICENCE = "Apache-2.0 for the weights; research use only; attributions of the training data in MODEL_CARD.md"
MAX_QUERY_TOKENS, MAX_NEW_TOKENS = 48, 128
MARKS = ("<!-- results: made by inference.export.package -->", "<!-- end of results -->")
CARD = """# {name}

**Research use only. Not a medical device. It must not guide care.**

## Measured

{begin}
{end}
"""
COLUMNS = ("dice", "giou", "ciou", "balanced_accuracy")
# of metrics.json -> title: the zone that the text names, beside the true mask and the one drawn
WORDS = {"zone_accuracy": "zone named", "text_mask_agreement": "words = mask"}


def write_manifest(
    folder: Path,
    version: str,
    *,
    family: str = "sim4seg",
    top_k: int = 36,
    diagnoses: Sequence[str] = DIAGNOSES,
    side: int = 256,
) -> None:
    """Write `folder`/model.toml, listing every other file there."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "model.toml")
    files = "\n".join(f'"{name}" = "{sha256(folder / name)}"' for name in names)
    text = f"""[model]
name = "{folder.name}"
version = "{version}"
family = "{family}"
licence = "{LICENCE}"

[input]
side = {side}
mean = {list(IMAGENET_MEAN)}
std = {list(IMAGENET_STD)}

[region]
grid = {GRID}
top_k = {top_k}

[text]
tokenizer = "tokenizer.json"
layers = {_language_layers(folder)}
max_query_tokens = {MAX_QUERY_TOKENS}
max_new_tokens = {MAX_NEW_TOKENS}
answer_cue = {json.dumps(ANSWER_CUE)}

[labels]
diagnoses = {json.dumps(list(diagnoses))}

[files]
{files}
"""
    (folder / "model.toml").write_text(text)


def _language_layers(folder: Path) -> int:
    """Layers of the language model, as its step keeps them; 0 where there is none."""
    path = folder / "language_step.onnx"
    if not path.exists():
        return 0
    inputs = {each.name for each in onnx.load(path, load_external_data=False).graph.input}
    return next(layer for layer in count() if of_layer(layer, "past")[0] not in inputs)


def results_table(metrics: dict[str, Any]) -> str:
    """metrics.json as a Markdown table; a dash where nothing was measured."""
    titles = ["Dice", "gIoU", "cIoU", "balanced accuracy", "majority class", *WORDS.values(), "well-formed"]
    head = f"| data set | images | {' | '.join(titles)} |"
    rows = [_row(name, scores) for name, scores in sorted(metrics["datasets"].items())]
    return "\n".join([head, f"|---|--:|{'--:|' * len(titles)}", *rows])


def _row(name: str, scores: dict[str, Any]) -> str:
    cells = [name, str(scores["images"]), *(_interval(scores.get(column)) for column in COLUMNS)]
    chance = scores.get("majority_balanced_accuracy")
    cells.append("-" if chance is None else f"{chance:.3f}")
    cells += [_interval(scores.get(column)) for column in WORDS]
    cells.append(f"{scores['well_formed_rate']:.3f}")
    return f"| {' | '.join(cells)} |"


def _interval(score: dict[str, float] | None) -> str:
    return "-" if score is None else f"{score['mean']:.3f} ({score['low']:.3f}-{score['high']:.3f})"


def write_results(card: Path, metrics: Path) -> None:
    """Put the table of `metrics` between the marks of `card`; a package without a card gets the least one."""
    if not card.exists():
        card.write_text(CARD.format(name=card.parent.name, begin=MARKS[0], end=MARKS[1]))
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
    known = tomllib.loads((options.package / "model.toml").read_text())
    write_manifest(
        options.package,
        options.version,
        family=known["model"]["family"],
        top_k=known["region"]["top_k"],
        diagnoses=known["labels"]["diagnoses"],
    )


if __name__ == "__main__":
    main()
