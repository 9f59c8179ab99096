"""Where a result stands among others on the same study: what it saw, what it replaces, what was missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dicom_node.context import Predecessor, ResultContext
from storage.database import Transaction
from storage.index import instances_of_series
from storage.jobs import ClaimedJob
from storage.studies import arrived_and_expected
from storage.tables import Job
from storage.versions import Inputs, ResultReference, current_results, inputs_of, same_result


@dataclass(frozen=True)
class Standing:
    """What a job sees, read at one moment."""

    paths: Mapping[str, Sequence[str]]  # of the stored files, by series
    inputs: Inputs
    predecessors: tuple[ResultReference, ...]
    context: ResultContext
    answered: Job | None  # the job that saw the same with the same model, if its result is current

    def summary(self) -> dict[str, object]:
        """What the job's row says of it."""
        replaced = [each.sop_instance_uid for each in self.predecessors]
        return {"study_version": self.context.version, "inputs": self.context.inputs, "supersedes": replaced}


def standing_of(tx: Transaction, job: ClaimedJob, series_uids: Sequence[str], model_version: str) -> Standing:
    """Read what `job` sees of its series, and what results there are, in one transaction."""
    rows = {uid: instances_of_series(tx, uid) for uid in series_uids}
    inputs = inputs_of(row for series in rows.values() for row in series)
    predecessors = current_results(tx, job)
    arrived, expected = arrived_and_expected(tx, job.study_instance_uid)
    is_partial = expected is not None and arrived < expected
    context = ResultContext(
        version=job.study_version,
        predecessors=tuple(_named(each) for each in predecessors),
        inputs=f"{arrived}/{expected}" if is_partial else "",
    )
    answered = same_result(tx, job, inputs, model_version)
    paths = {uid: tuple(row.path for row in series) for uid, series in rows.items()}
    return Standing(paths, inputs, predecessors, context, answered)


def _named(result: ResultReference) -> Predecessor:
    return Predecessor(
        result.study_instance_uid,
        result.series_instance_uid,
        result.sop_class_uid,
        result.sop_instance_uid,
    )
