"""The long form: power cuts and SIGKILLs by one command; ends with its figures, and with 1 on any loss.

    make soak CUTS=50 KILLS=100 SEED=1

The last line is one JSON document: cuts, kills, acknowledged, lost, partial, wrong digests, then the parts.

Half of the cuts hit files and SQLite on one volume; the others files and PostgreSQL on one volume, and files
and index on two volumes of which one is cut.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.faults.kills import KillFigures, run_kills
from tests.faults.power_cut import Figures, run_cuts
from tests.faults.stages import PostgresStage, Stage
from tests.faults.volume import NoVolume, Volume, new_volume
from tests.faults.zygote import Zygote

CANNOT_RUN = 2


def main() -> int:
    """Run what the options ask for."""
    options = _options()
    kills: KillFigures | None = None
    try:
        with _folder() as folder:
            cuts = _run_all_cuts(folder, options.cuts, options.seed)
            if options.kills:
                kills = run_kills(folder / "kills", options.kills, options.seed)
    except NoVolume as reason:
        print(f"no power cut can be made here: {reason}", file=sys.stderr)
        return CANNOT_RUN
    report = {"seed": options.seed, **summary(cuts, kills)}
    print(json.dumps(report))
    return 0 if report["is_sound"] else 1


def summary(cuts: Mapping[str, Figures], kills: KillFigures | None) -> dict[str, Any]:
    """The last line: what it all came to, then the parts."""
    every = cuts.values()
    acknowledged = sum(figures.acknowledged for figures in every)
    return {
        "cuts": sum(figures.cuts for figures in every),
        "kills": kills.kills.total() if kills else 0,
        "acknowledged": acknowledged,
        "lost": sum(len(figures.lost) for figures in every),
        "partial": sum(len(figures.partial) for figures in every),
        "wrong_digests": sum(len(figures.wrong_digest) for figures in every),
        "broken_promises_after_kills": len(kills.problems) if kills else 0,
        "upper_bound_95": 3 / max(acknowledged, 1),  # rule of three, for 0 lost
        "is_sound": all(figures.is_sound for figures in every) and (kills is None or kills.is_sound),
        "cuts_by_stage": {name: figures.as_json() for name, figures in cuts.items()},
        "killed_node": kills.as_json() if kills else None,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Power cuts and SIGKILLs; research use only.")
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _run_all_cuts(folder: Path, cuts: int, seed: int) -> dict[str, Figures]:
    shares: dict[str, tuple[Callable[[ExitStack, Path], Stage], int]] = {
        "sqlite": (_on_sqlite, cuts - 2 * (cuts // 4)),
        "postgresql": (_on_postgresql, cuts // 4),
        "two_volumes": (_on_two_volumes, cuts // 4),
    }
    figures = {}
    for name, (make, share) in shares.items():
        if not share:
            continue
        beside = folder / name
        beside.mkdir()
        with ExitStack() as volumes, Zygote() as zygote:
            figures[name] = run_cuts(make(volumes, beside), zygote, beside, share, seed)
        print(f"{name}: {figures[name]}", file=sys.stderr)
    return figures


def _on_sqlite(volumes: ExitStack, beside: Path) -> Stage:
    return Stage([_volume(volumes, beside, "both")])


def _on_postgresql(volumes: ExitStack, beside: Path) -> Stage:
    sockets = beside / "sockets"
    sockets.mkdir()
    return PostgresStage(_volume(volumes, beside, "both"), sockets)


def _on_two_volumes(volumes: ExitStack, beside: Path) -> Stage:
    return Stage([_volume(volumes, beside, "files"), _volume(volumes, beside, "index")])


def _volume(volumes: ExitStack, beside: Path, name: str) -> Volume:
    return volumes.enter_context(new_volume(beside / name, size_mb=2048))


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="node-soak-"))
    folder.chmod(0o755)  # PostgreSQL runs as somebody else
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
