"""What stops the node from working, as a file per process under HOME/run that /health/ready reads."""

import json
import os
from pathlib import Path
from typing import NamedTuple

MAX_FILE_BYTES = 64 * 1024


class Problem(NamedTuple):
    """Why the node cannot work: a word for machines, a sentence for people."""

    reason: str
    sentence: str


def report(home: Path, process: str, problem: str | None) -> None:
    """Say that `process` cannot work, in one sentence; None takes it back."""
    path = _path(home, process)
    if problem is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"process": process, "problem": problem}), encoding="utf-8")
    draft.replace(path)


def problems(home: Path) -> list[Problem]:
    """Every problem that a process of this home has reported and not taken back."""
    found = []
    for path in sorted((home / "run").glob("readiness-*.json")):
        try:
            text = path.read_text(encoding="utf-8")[:MAX_FILE_BYTES]
        except FileNotFoundError:  # taken back between the look and the reading
            continue
        found.append(_problem_in(text, path))
    return found


def _problem_in(text: str, path: Path) -> Problem:
    try:
        told = json.loads(text)
        return Problem(told["process"], told["problem"])
    except (ValueError, TypeError, KeyError):  # a power cut may leave it empty
        process = path.stem.removeprefix("readiness-")
        sentence = f"what {process} reported cannot be read: see its log, and start the node again"
        return Problem(process, sentence)


def is_reported(home: Path, process: str) -> bool:
    """Whether `process` has a problem that it has not taken back; cheap enough to ask all the time."""
    return _path(home, process).exists()


def _path(home: Path, process: str) -> Path:
    return home / "run" / f"readiness-{process}.json"
