"""Corrections: a SEG or SR that somebody sends about a result of ours is compared with it, once.

An edited object comes back by STOW-RS or C-STORE under a UID of its own (OHIF 3.13 saves a LABELMAP in RLE).
It is no image, so it neither opens the study again nor runs a model. The sweep compares it, in a limited
child, and says: accepted, modified or rejected; deliveries then follow what the person said.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from dicom_node.errors import ChildFailed, ChildrenBusy
from dicom_node.limited import LimitedPool
from dicom_node.same_segments import count_overlap, read_facts
from dicom_node.steady import steadily
from storage.corrections import (
    SEGMENTATIONS,
    Judgement,
    Match,
    OwnObject,
    Verdict,
    forget_correction,
    own_objects,
    pending_corrections,
    record_judgement,
)
from storage.database import Database
from storage.errors import InstanceMissing
from storage.files import FileStore
from storage.tables import Instance

MAX_COMPARED: Final = 50  # objects of ours that one object is compared with, the newest first
NO_CODE: Final = frozenset({"T-D0050 SRT", "85756007 SCT", " "})  # "Tissue", which OHIF writes for anything

logger = logging.getLogger(__name__)
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class _Pair:
    """The object that came, and the one of ours that it is about."""

    theirs: Facts
    ours: OwnObject
    our_facts: Facts
    variants: tuple[str, ...]
    matched_by: Match


def judge_corrections(database: Database, files: FileStore, children: LimitedPool) -> int:
    """Compare what has come and nobody has compared; gives how many verdicts there are now."""
    with database.reading() as tx:
        pending = pending_corrections(tx)
    judged = 0
    for number, came in pending:
        judge = partial(_judge, database, files, children, number, came)
        extra = {"sop_instance_uid": came.sop_instance_uid}
        judged += steadily(judge, otherwise=False, what="the comparison of a correction", **extra)
    return judged


def _judge(database: Database, files: FileStore, children: LimitedPool, number: int, came: Instance) -> bool:
    extra = {"sop_instance_uid": came.sop_instance_uid}
    try:
        judged = _compared(database, files, children, came)
    except ChildrenBusy:
        return False  # the next pass tries again
    except (ChildFailed, InstanceMissing) as error:
        logger.warning("a correction cannot be read", extra=extra | {"reason": type(error).__name__})
        judged = None
    with database.transaction() as tx:
        if judged is None:
            forget_correction(tx, number)
            return False
        is_new = record_judgement(tx, number, judged)
    logger.info("correction", extra=extra | {"result": str(judged.verdict), "job_id": judged.ours.job_id})
    return is_new


def _compared(
    database: Database, files: FileStore, children: LimitedPool, came: Instance
) -> Judgement | None:
    with database.reading() as tx:
        ours = own_objects(tx, came)[:MAX_COMPARED]
    with ExitStack() as held:

        def local(path: str) -> str:
            return str(held.enter_context(files.local(path)))

        theirs = children.run(read_facts, local(came.path))
        facts = {each.sop_instance_uid: children.run(read_facts, local(each.path)) for each in ours}
        pair = _pair(came, theirs, ours, facts)
        if pair is None:
            return None
        if came.sop_class_uid not in SEGMENTATIONS:
            return _judgement(pair, _verdict_on_report(pair), {})
        counts = children.run(count_overlap, local(pair.ours.path), local(came.path))
    dice = _dice(pair, counts)
    return _judgement(pair, _verdict_on_masks(counts, dice), dice)


def _judgement(pair: _Pair, verdict: Verdict, dice: Mapping[str, float]) -> Judgement:
    made_by = str(pair.theirs["made_by"])
    return Judgement(verdict, pair.ours, pair.variants, pair.matched_by, made_by, dice)


def _pair(
    came: Instance, theirs: Facts, ours: Sequence[OwnObject], facts: Mapping[str, Facts]
) -> _Pair | None:
    """The object of ours that `theirs` is about: one that it names, else the newest that says the same."""
    is_mask = came.sop_class_uid in SEGMENTATIONS
    named = [*theirs["predecessors"], *(theirs["references"] if is_mask else ())]
    by_name = [each for each in ours if each.sop_instance_uid in named]
    by_content = [each for each in ours if _is_alike(theirs, facts[each.sop_instance_uid], is_mask=is_mask)]
    found = by_name or by_content
    if not found:
        return None
    matched_by = Match.REFERENCE if by_name else Match.CONTENT
    chosen, our_facts = found[0], facts[found[0].sop_instance_uid]
    variants = tuple(
        each.sop_instance_uid
        for each in ours
        if each.job_id == chosen.job_id and facts[each.sop_instance_uid]["series"] == our_facts["series"]
    )
    return _Pair(theirs, chosen, our_facts, variants, matched_by)


def _is_alike(theirs: Facts, ours: Facts, *, is_mask: bool) -> bool:
    if not is_mask:  # a report of measurements of one's own is none about ours
        return not set(theirs["tracking"]).isdisjoint(ours["tracking"])
    if set(theirs["series"]).isdisjoint(ours["series"]):
        return False
    return any(_likeness(mine, each) for mine in ours["segments"] for each in theirs["segments"])


def _likeness(ours: Facts, theirs: Facts) -> int:
    """How sure it is that two segments are of one thing: tracking UID, then code, then label; 0 = not."""
    if ours["tracking"] and ours["tracking"] == theirs["tracking"]:
        return 3
    if ours["kind"] == theirs["kind"] and ours["kind"] not in NO_CODE:
        return 2
    return int(ours["label"].strip().casefold() == theirs["label"].strip().casefold() != "")


def _dice(pair: _Pair, counts: Facts | None) -> dict[str, float]:
    """Dice of each segment of ours with the one that took its place, 0 to 1, by label; 0 when none did."""
    if counts is None:
        return {}
    first, second = dict(map(tuple, counts["first"])), dict(map(tuple, counts["second"]))
    both = {(one, other): count for one, other, count in counts["both"]}
    dice = {}
    for mine in pair.our_facts["segments"]:
        number, other = mine["number"], _counterpart(mine, pair.theirs["segments"])
        total = first.get(number, 0) + second.get(other, 0)
        shared = 2 * both.get((number, other), 0)
        dice[_label(mine)] = round(shared / total, 6) if total else 1.0
    return dice


def _counterpart(mine: Facts, theirs: Sequence[Facts]) -> int | None:
    """The number of the segment that is of the same thing; the only one, if there is only one."""
    segments = [each for each in theirs if each["number"]]  # 0 is a label map's background
    ranked = sorted(segments, key=lambda each: -_likeness(mine, each))
    if ranked and (_likeness(mine, ranked[0]) or len(ranked) == 1):
        return int(ranked[0]["number"])
    return None


def _label(segment: Facts) -> str:
    return segment["label"] or f"segment {segment['number']}"


def _verdict_on_masks(counts: Facts | None, dice: Mapping[str, float]) -> Verdict:
    if counts is None:
        return Verdict.MODIFIED
    first, second = (sum(count for _, count in counts[name]) for name in ("first", "second"))
    if second == 0:
        return Verdict.REJECTED
    shared = sum(count for *_, count in counts["both"])
    is_same = first == second == shared and all(value == 1.0 for value in dice.values())
    return Verdict.ACCEPTED if is_same else Verdict.MODIFIED


def _verdict_on_report(pair: _Pair) -> Verdict:
    is_same = pair.theirs["measured"] == pair.our_facts["measured"]
    return Verdict.ACCEPTED if is_same else Verdict.MODIFIED
