"""M3DS's way to reasoned answers: Medical Assistant, Critical Assistant with retries, human review.

    python -m inference.datasets.assistants --data ../shared/data --out chains.jsonl

After arXiv 2511.06665, section 2.2 (models.md 1.6): an assistant that knows question and diagnosis writes a
chain of reasoning; a critic accepts it or says what is wrong, and the assistant tries again; what is not
accepted in time goes to a person. Prompts, number of rounds and share of reviews are not published: those
here are ours. Assistants stand behind one interface (`Assistant`). By default they are rules: the chain is
measured on mask and pixels, and the critic measures again. A transformers LVLM takes their place by
configuration (`--lvlm FOLDER`). The answer is given to the writer, so a chain is a justification after the
fact, whoever writes it.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.datasets.frames import read_image, read_mask
from inference.datasets.m3ds import KINDS, Record, load_records
from inference.datasets.measure import measure
from inference.prompts import Findings, parse_answer, write_answer, write_empty_answer

ROUNDS = 3  # tries before a person is asked; ours
AREA_TOLERANCE = 2  # percent points


@dataclass(frozen=True, eq=False)
class Task:
    """What an assistant is given."""

    name: str
    dataset: str
    question: str
    pixels: NDArray[np.uint8]  # (H, W, 3)
    mask: NDArray[np.bool_]  # (H, W); all False where nothing is to be outlined
    diagnosis: str | None

    @property
    def modality(self) -> str:
        """The modality phrase of the data set."""
        return KINDS[self.dataset].modality

    def findings(self) -> Findings:
        """What mask and pixels say; the mask must not be empty."""
        return measure(self.mask, self.pixels, self.modality, self.diagnosis)


@dataclass(frozen=True)
class Verdict:
    """What the critic says of a chain."""

    is_accepted: bool
    reason: str = ""


@dataclass(frozen=True)
class Draft:
    """A chain, how many tries it took, and what was said against the earlier ones."""

    name: str
    dataset: str
    question: str
    chain: str
    is_accepted: bool
    rounds: int
    objections: tuple[str, ...]


class Assistant(Protocol):
    """Writes a chain of reasoning, or judges one."""

    def write(self, task: Task, objections: tuple[str, ...]) -> str:
        """A chain for the task, knowing what was said against the earlier ones (Medical Assistant)."""

    def judge(self, task: Task, chain: str) -> Verdict:
        """Whether a chain is complete, follows, and is true to the image (Critical Assistant)."""


class RuleAssistant:
    """Measures: every sentence it writes can be checked, and it checks every sentence."""

    def write(self, task: Task, objections: tuple[str, ...]) -> str:  # noqa: ARG002 - a measurement does not change
        """The closed wording of `inference.prompts`, filled with what was measured."""
        if not task.mask.any():
            return write_empty_answer(task.modality, task.diagnosis).strip()
        return write_answer(task.findings()).strip()

    def judge(self, task: Task, chain: str) -> Verdict:
        """Complete, of this kind of image and diagnosis, grounded in this mask; else the first fault."""
        parsed = parse_answer(chain)
        if not parsed.is_well_formed:
            return Verdict(False, "a sentence of the closed wording is missing")
        if parsed.modality != task.modality:
            return Verdict(False, f"the image is a {task.modality}")
        if parsed.diagnosis != task.diagnosis:
            return Verdict(False, f"the confirmed diagnosis is {task.diagnosis or 'none'}")
        if parsed.has_region != bool(task.mask.any()):
            return Verdict(False, "whether there is anything to outline is told wrongly")
        return self._grounded(task, chain) if parsed.has_region else Verdict(True)

    def _grounded(self, task: Task, chain: str) -> Verdict:
        measured, parsed = task.findings(), parse_answer(chain)
        if parsed.zone != measured.zone:
            return Verdict(False, f"the region lies in the {measured.zone}")
        if abs((parsed.area_percent or 0) - measured.area_percent) > AREA_TOLERANCE:
            return Verdict(False, f"it covers about {measured.area_percent} percent")
        wanted = {
            "shape": f"its shape is {measured.shape} and {measured.orientation}",
            "margin": f"with a {measured.margin} margin",
            "echo": f"it is {measured.brightness} its surroundings and {measured.texture}.",
        }
        for what, phrase in wanted.items():
            if phrase not in chain:
                return Verdict(False, f"{what}: {phrase}")
        return Verdict(True)


def draft(writer: Assistant, critic: Assistant, task: Task, rounds: int = ROUNDS) -> Draft:
    """Write and judge until accepted, at most `rounds` times; the last try stands either way."""
    objections: list[str] = []
    chain = ""
    for turn in range(1, rounds + 1):
        chain = writer.write(task, tuple(objections))
        verdict = critic.judge(task, chain)
        if verdict.is_accepted:
            return Draft(task.name, task.dataset, task.question, chain, True, turn, tuple(objections))
        objections.append(verdict.reason)
    return Draft(task.name, task.dataset, task.question, chain, False, rounds, tuple(objections))


class ReviewQueue:
    """Drafts that wait for a person: one JSON file each, kept until somebody has decided.

    A decision is that person's `accept`, with the chain as it stands or as they rewrote it, or `reject`,
    which sends the task back to the writer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, one: Draft) -> None:
        """Let a draft wait."""
        self._write(self._path(one.dataset, one.name), {**asdict(one), "decision": ""})

    def waiting(self) -> list[Draft]:
        """Drafts without a decision, by name."""
        return [_draft_of(content) for content in self._contents() if not content["decision"]]

    def accept(self, one: Draft, chain: str | None = None) -> None:
        """Take a draft, rewritten if `chain` is given."""
        kept = {**asdict(one), "chain": chain or one.chain, "is_accepted": True, "decision": "accept"}
        self._write(self._path(one.dataset, one.name), kept)

    def reject(self, one: Draft, reason: str) -> None:
        """Send a draft back, saying what is wrong with it."""
        kept = {**asdict(one), "objections": [*one.objections, reason], "decision": "reject"}
        self._write(self._path(one.dataset, one.name), kept)

    def decided(self, decision: str) -> list[Draft]:
        """Drafts that were decided so (`accept` or `reject`), by name."""
        return [_draft_of(content) for content in self._contents() if content["decision"] == decision]

    def forget(self, one: Draft) -> None:
        """Take a draft out of the queue: a later try needed no person."""
        self._path(one.dataset, one.name).unlink(missing_ok=True)

    def _path(self, dataset: str, name: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{dataset}-{name}")
        return self.folder / f"{safe}.json"

    @staticmethod
    def _write(path: Path, content: dict[str, object]) -> None:
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(path)

    def _contents(self) -> list[dict[str, object]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]


def _draft_of(content: dict[str, object]) -> Draft:
    known = {key: value for key, value in content.items() if key != "decision"}
    known["objections"] = tuple(known["objections"])  # type: ignore[arg-type]
    return Draft(**known)  # type: ignore[arg-type]


def generate_chains(
    writer: Assistant, critic: Assistant, tasks: Iterable[Task], queue: ReviewQueue, rounds: int = ROUNDS
) -> Iterator[Draft]:
    """Accepted drafts; the others wait in `queue`, and what a person decided there is honoured.

    A draft accepted there is taken as it stands; one rejected there is written anew with the objections.
    """
    accepted = {(one.dataset, one.name): one for one in queue.decided("accept")}
    rejected = {(one.dataset, one.name): one for one in queue.decided("reject")}
    for task in tasks:
        key = (task.dataset, task.name)
        if key in accepted:
            yield accepted[key]
            continue
        one = draft(writer, critic, task, rounds)
        if one.is_accepted and key not in rejected:
            queue.forget(one)
            yield one
        else:
            queue.put(one)  # what a person rejected goes back to a person, however content the critic is


def tasks_of(records: Iterable[Record]) -> Iterator[Task]:
    """One task for each record, with the first question of its kind."""
    for record in records:
        pixels = read_image(record)
        mask = read_mask(record, (pixels.shape[0], pixels.shape[1]))
        question = KINDS[record.dataset].queries[0]
        yield Task(record.name, record.dataset, question, pixels, mask, record.diagnosis)


def main() -> None:
    """Write the accepted chains of a data folder as JSON lines; the others wait beside them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--lvlm", type=Path, help="folder of a transformers LVLM that writes and judges")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--limit", type=int, help="records at most")
    options = parser.parse_args()
    assistant: Assistant = RuleAssistant()
    if options.lvlm:
        from inference.datasets.lvlm_assistant import LvlmAssistant  # noqa: PLC0415 - transformers, only here

        assistant = LvlmAssistant(options.lvlm)
    records = load_records(options.data)[: options.limit]
    queue = ReviewQueue(options.out.with_suffix(".review"))
    with options.out.open("w") as file:
        for one in generate_chains(assistant, assistant, tasks_of(records), queue, options.rounds):
            file.write(json.dumps(asdict(one)) + "\n")


if __name__ == "__main__":
    main()
