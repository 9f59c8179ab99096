"""4 JOB, of a study that no rule matches: it runs no model, and has those destinations told that ask for it.

Off by default: a PACS that routes everything through here would get a report on every study of the hospital.
The operator's page and the API say of each study, with or without it, why no rule matched.
"""

from collections.abc import Iterable
from typing import Final

from dicom_node.settings import NodeSettings
from storage.database import Transaction
from storage.index import instances_of_series
from storage.jobs import JobRequest
from storage.notes import DERIVED_MODALITIES
from storage.tables import Series

NO_MODEL: Final = "no model"  # no package can be called so
NOT_ROUTED: Final = "NOT ROUTED"
NO_RULE: Final = "no rule matched: "


def job_that_tells(
    tx: Transaction, settings: NodeSettings, series: Iterable[Series], version: int
) -> JobRequest | None:
    """The job that says that none of `series`, all of one study, is analysed; None where nobody asks."""
    if not any(destination.reports_unmatched for destination in settings.destinations):
        return None
    first = next((each for each in series if _has_images(tx, each)), None)
    if first is None:  # reports or results alone: there is nothing that could have been analysed
        return None
    return JobRequest(
        study_instance_uid=first.study_instance_uid,
        study_version=version,
        series_instance_uid=first.series_instance_uid,
        rule="",
        model=NO_MODEL,
        query="",
    )


def _has_images(tx: Transaction, series: Series) -> bool:
    if series.is_own_result or series.modality in DERIVED_MODALITIES:
        return False
    return bool(instances_of_series(tx, series.series_instance_uid))
