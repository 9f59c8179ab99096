"""Puts the mean [SEG] state of a language-model run into a segmenter's state, between two of its steps.

python -m inference.training.seg_prompt --states seg_mean.safetensors --state segmenter/state.safetensors
"""

import argparse
from pathlib import Path

from torch import Tensor

from inference.models.checkpoints import load_tensors, save_tensors


def set_prompt(state: Path, prompt: Tensor) -> None:
    """Replace the constant prompt (256,) in the training state at `state`, and in its moving average."""
    tensors, notes = load_tensors(state)
    for name in ("model.constant_prompt", "average.constant_prompt"):
        tensors[name] = prompt.view(1, 1, -1).clone()
    save_tensors(state, tensors, notes)


def main() -> None:
    """Run `set_prompt` on two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=Path, required=True, help="file with one tensor `m` (256,)")
    parser.add_argument("--state", type=Path, required=True)
    options = parser.parse_args()
    set_prompt(options.state, load_tensors(options.states)[0]["m"])


if __name__ == "__main__":
    main()
