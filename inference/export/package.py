"""A model package: graphs, tokenizer, cards, and model.toml with the sha256 of every file."""

import json
from pathlib import Path

from inference.models.checkpoints import sha256
from inference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from inference.prompts import ANSWER_CUE, DIAGNOSES

NAME = "sim4seg-s"
LICENCE = "Apache-2.0 for the weights; research use only; attributions of the training data in MODEL_CARD.md"
MAX_QUERY_TOKENS, MAX_NEW_TOKENS = 48, 128


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
