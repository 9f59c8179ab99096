"""Clinical questions in a person's words: which model and which images answer them, before all other jobs.

What goes to a model is what was typed, or a rule's own question: never text of a DICOM attribute.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dicom_node.completion import attributes_of
from dicom_node.errors import BadRequest, NotAskable, NotFound, QuestionRefused
from dicom_node.reading import VENTRICLE
from dicom_node.routing import Route, choose_route
from dicom_node.settings import NodeSettings
from storage.database import Transaction
from storage.index import find_study, instances_of_series, series_of_study
from storage.jobs import FAILED, JobRequest, JobState, create_job, requeue_job
from storage.notes import DERIVED_MODALITIES
from storage.questions import put_first, send_results
from storage.tables import Job, Series, Study
from storage.workitems import job_asked_for

RULE: Final = "question"  # what made the job
PRIORITY: Final = 1000  # a rule has at most 100, and a minute of waiting counts one
MAX_QUERY: Final = 400  # characters, as of a rule
EXAMPLES: Final = ("Where is the lesion?", "Is it malignant?", "Segment the left ventricle.")


@dataclass(frozen=True)
class Wish:
    """Which model, question and target are asked for; "" leaves it to the rules."""

    model: str = ""
    query: str = ""
    target: str = ""


@dataclass(frozen=True)
class Question:
    """What somebody wants to know of a study, or of one series of it."""

    study_instance_uid: str
    series_instance_uid: str | None
    wish: Wish
    is_sent: bool  # to the destinations; the result stays here otherwise
    asker: str  # the address that it came from


def ask(tx: Transaction, question: Question, settings: NodeSettings) -> str:
    """Give the job that answers `question`: a new one, or the one that was asked the same of these images.

    Raises
    ------
    NotFound, NotAskable, QuestionRefused
        If there is no such study, it has no such images, or this cannot be asked.
    """
    query = checked_query(question.wish.query)
    _require_model(question.wish.model, settings)
    study = find_study(tx, question.study_instance_uid)
    if study is None:
        raise NotFound("no study of this UID is stored here: send its images first")
    wish = replace(question.wish, query=query)
    job_ids = []
    for series in _series_of(tx, question, wish, settings):
        request = request_of(tx, _aimed(tx, wish, series, settings), study, series, settings)
        request = replace(request, rule=RULE, priority=PRIORITY, is_kept_here=not question.is_sent)
        job_ids.append(_placed(tx, request, question.asker))
        if question.is_sent:
            send_results(tx, job_ids[-1])
    return job_ids[0]


def checked_query(query: str) -> str:
    """The question without blanks around it; raises QuestionRefused."""
    text = query.strip()
    if not text:
        raise QuestionRefused("the question is empty")
    if len(text) > MAX_QUERY:
        raise QuestionRefused(f"the question has more than {MAX_QUERY} characters")
    if not text.isprintable():
        raise QuestionRefused("the question has signs that cannot be printed")
    return text


def request_of(
    tx: Transaction, wish: Wish, study: Study, series: Series, settings: NodeSettings
) -> JobRequest:
    """The job for a wish about a series; what the wish leaves open, the rules decide.

    Raises
    ------
    BadRequest, NotAskable
        If no rule uses that model, the series is no image, or nothing says what to ask.
    """
    if series.is_own_result:
        raise NotAskable("the series is a result of this node")
    routes = _routes_of(wish.model, settings)
    if not routes:
        raise BadRequest("this node has no such model to ask, or no rule at all")
    choice = choose_route(attributes_of(tx, series), routes).route
    if choice is None and not wish.query:
        raise NotAskable("no rule of this node matches the series, and there is no query")
    known = {route.query: route.target for route in routes}
    default = choice or routes[0]
    return JobRequest(
        study_instance_uid=study.study_instance_uid,
        study_version=study.version,
        series_instance_uid=series.series_instance_uid,
        rule=RULE,
        model=wish.model or default.model,
        query=wish.query or default.query,
        target=wish.target or known.get(wish.query or default.query, ""),
    )


def series_with_images(tx: Transaction, study_instance_uid: str) -> list[Series]:
    """Return the series of a study that can be asked about: received images that count."""
    return [
        series
        for series in series_of_study(tx, study_instance_uid)
        if not series.is_own_result
        and series.modality not in DERIVED_MODALITIES
        and instances_of_series(tx, series.series_instance_uid)
    ]


def suggestions(tx: Transaction, series: Sequence[Series], settings: NodeSettings) -> list[str]:
    """Return questions that the rules ask of these series, then some in a person's words."""
    ruled = (choose_route(attributes_of(tx, each), settings.routes).route for each in series)
    return list(dict.fromkeys([*(route.query for route in ruled if route is not None), *EXAMPLES]))


def _require_model(model: str, settings: NodeSettings) -> None:
    if not _routes_of(model, settings):
        known = ", ".join(settings.models) or "none"
        raise QuestionRefused(f"this node has no such model to ask; its models: {known}")


def _routes_of(model: str, settings: NodeSettings) -> list[Route]:
    """The rules that use a model; all, if none is named or it is there for questions only."""
    own = [route for route in settings.routes if model in ("", route.model)]
    if own or model not in settings.questions.models:
        return own
    return [route.model_copy(update={"model": model}) for route in settings.routes]


def _series_of(tx: Transaction, question: Question, wish: Wish, settings: NodeSettings) -> list[Series]:
    """The series that was named, or that a rule asks this of, or that any rule matches, or the first.

    Slices of a heart may be a series each: all that the rule of the first matches are asked, as by the rule.
    """
    found = series_with_images(tx, question.study_instance_uid)
    if question.series_instance_uid is not None:
        return [_named(tx, question, found)]
    if not found:
        raise NotAskable("the study has no images here: send them first")
    first = min(_ranked(tx, found, wish, settings), key=lambda ranked: ranked[:2])[2]
    rule = _rule_of(tx, first, wish, settings)
    if rule is None or rule.target != VENTRICLE:
        return [first]
    others = [each for each in found if each is not first and _rule_of(tx, each, wish, settings) == rule]
    return [first, *others]


def _rule_of(tx: Transaction, series: Series, wish: Wish, settings: NodeSettings) -> Route | None:
    return choose_route(attributes_of(tx, series), _routes_of(wish.model, settings)).route


def _aimed(tx: Transaction, wish: Wish, series: Series, settings: NodeSettings) -> Wish:
    """The wish, with what the rule of these images expects as the target of an answer that names none."""
    rule = _rule_of(tx, series, wish, settings)
    return wish if wish.target or rule is None else replace(wish, target=rule.target)


def _named(tx: Transaction, question: Question, found: Sequence[Series]) -> Series:
    for series in found:
        if series.series_instance_uid == question.series_instance_uid:
            return series
    row = tx.get(Series, question.series_instance_uid)
    if row is None or row.study_instance_uid != question.study_instance_uid:
        raise NotFound("no series of this UID is stored in this study: leave it out, or send its images")
    raise NotAskable("the series holds no images that could be asked about: name one that does")


def _ranked(
    tx: Transaction, found: Sequence[Series], wish: Wish, settings: NodeSettings
) -> Iterator[tuple[int, int, Series]]:
    for place, series in enumerate(found):
        route = _rule_of(tx, series, wish, settings)
        rank = 2 if route is None else int(route.query != wish.query)
        yield rank, place, series


def _placed(tx: Transaction, request: JobRequest, asker: str) -> str:
    """A new job; or the present one of the same words, before others, and once more where it had failed."""
    made = create_job(tx, request)
    if made is not None:
        return made
    job_id = job_asked_for(tx, request)
    if job_id is None:
        raise NotAskable("the same job was just removed: ask again")
    job = tx.get_one(Job, job_id)
    if (job.state, job.outcome) == (JobState.CANCELED, FAILED):
        job_id = requeue_job(tx, job_id, asker)
    put_first(tx, job_id, PRIORITY)
    return job_id
