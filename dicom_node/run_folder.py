"""The same pipeline on DICOM files or folders, without a server."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.analysis import Result, analyse
from dicom_node.errors import InputUnreadable
from dicom_node.frames import (
    UNDECODABLE,
    Decode,
    FrameLimits,
    NotSuitable,
    display_frames,
    join_series,
    load_series,
)
from dicom_node.heart_series import read_headers, stack_with
from dicom_node.picture import save_key_picture
from dicom_node.pipeline import NOT_SUITABLE, OTHER_SERIES
from dicom_node.product import is_own_result
from dicom_node.reading import VENTRICLE, AnalysisRequest
from dicom_node.routing import Route, SeriesAttributes, choose_route
from inference.contract import Predictor
from inference.errors import InputRejected
from storage.jobs import FAILED

NO_RULE: Final = "NO RULE"
UNREADABLE: Final = "UNREADABLE"
MAX_FILES: Final = 200_000
HEADER_TAGS: Final = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "BodyPartExamined",
    "SeriesDescription",
    "StudyDescription",
    "Manufacturer",
]


@dataclass(frozen=True)
class RunOptions:
    """How to choose model and question; what is not given, the rules say."""

    open_predictor: Callable[[str], Predictor]
    routes: Sequence[Route] = ()
    model: str | None = None
    query: str | None = None
    limits: FrameLimits = field(default_factory=FrameLimits)
    decode: Decode = display_frames


@dataclass(frozen=True)
class _Series:
    study_instance_uid: str
    series_instance_uid: str
    attributes: SeriesAttributes
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class _Choice:
    model: str
    request: AnalysisRequest


def run_paths(paths: Sequence[Path], out_dir: Path, options: RunOptions) -> list[dict[str, object]]:
    """Analyse every series below `paths`; SEG, SR and a picture of each go to `out_dir`. One summary each.

    A file that cannot be read, and a series that is not suitable or that no rule covers, is a summary with
    its `outcome` and `reason`; the others go on.
    """
    found, summaries = _collect(paths)
    out_dir.mkdir(parents=True, exist_ok=True)
    choices = {series.series_instance_uid: _choose(series, options) for series in found}
    for number, series in enumerate(found, start=1):
        stem = out_dir / f"{number:03d}"
        choice = choices[series.series_instance_uid]
        if isinstance(choice, str):
            summary: dict[str, object] = {"outcome": NO_RULE, "reason": choice}
        else:
            alike = [each for each in found if choices[each.series_instance_uid] == choice]
            summary = _run_one(_stack(series, choice, alike), series, choice, stem=stem, options=options)
        uids = {
            "study_instance_uid": series.study_instance_uid,
            "series_instance_uid": series.series_instance_uid,
            "modality": series.attributes.modality,
        }
        summaries.append(uids | summary)
    return summaries


def _stack(series: _Series, choice: _Choice, alike: Sequence[_Series]) -> list[_Series]:
    """The series of the study that are slices of one heart with this one, lowest first; else itself."""
    mates = {
        each.series_instance_uid: each
        for each in alike
        if each.study_instance_uid == series.study_instance_uid
    }
    if choice.request.target != VENTRICLE or len(mates) < 2:
        return [series]
    headers = {uid: read_headers(mate.paths) for uid, mate in mates.items()}
    return [mates[uid] for uid in stack_with(series.series_instance_uid, headers)]


def _run_one(
    stack: Sequence[_Series], series: _Series, choice: _Choice, *, stem: Path, options: RunOptions
) -> dict[str, object]:
    if stack[0] is not series:
        return {"outcome": OTHER_SERIES, "analysed_with": stack[0].series_instance_uid}
    try:
        loaded = join_series([load_series(each.paths, options.limits, options.decode) for each in stack])
        result = analyse(loaded, options.open_predictor(choice.model), choice.request)
    except (NotSuitable, InputRejected) as error:
        return {"outcome": NOT_SUITABLE, "reason": str(error)}
    except InputUnreadable as error:
        return {"outcome": FAILED, "reason": str(error)}
    return {"outcome": result.outcome, **result.summary, "files": _write(result, stem)}


def _choose(series: _Series, options: RunOptions) -> _Choice | str:
    """What was asked for on the command line, else the first rule that matches, else a sentence."""
    chosen = choose_route(series.attributes, options.routes)
    route = chosen.route
    model = options.model or (route.model if route else None)
    if model is None and options.query and options.routes:
        model = options.routes[0].model
    query = options.query or (route.query if route else None)
    if model is None or query is None:
        why = "; ".join(chosen.why_not) or "there are no rules"
        return f"no rule matched ({why}); name a --model and a --query"
    target = route.target if route and query == route.query else ""
    return _Choice(model, AnalysisRequest(query, target or None))


def _write(result: Result, stem: Path) -> dict[str, str]:
    """Part 10 files and the picture; names are numbers, never what a file said about itself."""
    files: dict[str, str] = {}
    for dataset in result.datasets:
        kind = str(dataset.Modality).lower()
        kind += "" if kind not in files else f"-{sum(each.startswith(kind) for each in files) + 1}"
        path = stem.with_name(f"{stem.name}-{kind}.dcm")
        dataset.save_as(path, enforce_file_format=True)
        files[kind] = str(path)
    picture = stem.with_name(f"{stem.name}-key.png")
    region = result.findings.region
    save_key_picture(picture, result.findings.key, None if region is None else region.mask)
    files["picture"] = str(picture)
    return files


def _collect(paths: Sequence[Path]) -> tuple[list[_Series], list[dict[str, object]]]:
    headers: dict[tuple[str, str], list[tuple[Path, Dataset]]] = {}
    problems: list[dict[str, object]] = []
    for path in _files(paths, problems):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
            key = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
        except UNDECODABLE as error:
            problems.append(_problem(path, f"is not a DICOM file that can be read ({type(error).__name__})"))
            continue
        headers.setdefault(key, []).append((path, header))
    return [_series(key, headers[key]) for key in headers], problems


def _files(paths: Sequence[Path], problems: list[dict[str, object]]) -> Iterator[Path]:
    count = 0
    for path in paths:
        if not path.exists():
            problems.append(_problem(path, "does not exist"))
        for file in _walk(path) if path.is_dir() else [path] if path.is_file() else []:
            count += 1
            if count > MAX_FILES:
                problems.append(_problem(path, f"holds more than {MAX_FILES} files; run it in parts"))
                return
            if file.name.upper() != "DICOMDIR":
                yield file


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def _problem(path: Path, words: str) -> dict[str, object]:
    return {"outcome": UNREADABLE, "file": str(path), "reason": f"{path.name} {words}"}


def _series(key: tuple[str, str], members: list[tuple[Path, Dataset]]) -> _Series:
    first = members[0][1]
    modality = str(first.get("Modality") or "")
    attributes = SeriesAttributes(
        modality=modality,
        body_part=str(first.get("BodyPartExamined") or ""),
        sop_classes=frozenset(str(header.get("SOPClassUID", "")) for _, header in members),
        descriptions=(str(first.get("SeriesDescription") or ""), str(first.get("StudyDescription") or "")),
        calling_ae="",
        is_own_result=is_own_result(modality, str(first.get("Manufacturer") or "")),
    )
    return _Series(*key, attributes, tuple(path for path, _ in members))
