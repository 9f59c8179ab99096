"""The mean of the weights of several runs.

    python -m inference.training.average --out MEAN RUN RUN...

Runs that went on from one another lie in one basin, and the mean of their weights is often better than any
(Izmailov et al., arXiv 1803.05407; Wortsman et al., arXiv 2203.05482). It costs nothing when served.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from inference.models.checkpoints import CheckpointError, load_tensors, save_tensors


def mean_of(runs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each float tensor, of the dtype it had; of counters and masks the last run's.

    Raises
    ------
    CheckpointError
        If the runs are not of one model: other names or other shapes.
    """
    last = runs[-1]
    for run in runs:
        if {name: t.shape for name, t in run.items()} != {name: t.shape for name, t in last.items()}:
            raise CheckpointError("these weights are not of one model: names or shapes differ")
    return {name: _mean([run[name] for run in runs]) for name in last}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    total = sum((tensor.double() for tensor in tensors[1:]), tensors[0].double())
    return (total / len(tensors)).to(tensors[-1].dtype)


def main() -> None:
    """Write the mean, with the notes of the last run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="weights.safetensors that is made")
    parser.add_argument(
        "runs", type=Path, nargs="+", help="weights.safetensors of each run, the last one last"
    )
    options = parser.parse_args()
    loaded = [load_tensors(path) for path in options.runs]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(options.out, mean_of([tensors for tensors, _ in loaded]), loaded[-1][1])


if __name__ == "__main__":
    main()
