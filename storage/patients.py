"""Matching of patients, who are no rows here but the studies of one Patient ID: C-FIND at PATIENT level.

Source: PS3.4 section C.6.1.1.2 (attributes of the patient level).
"""

from dataclasses import dataclass

from sqlalchemy import func, select

from storage.database import Transaction
from storage.keywords import OF_PATIENT
from storage.search import STUDY_MATCHERS, SearchQuery, conditions
from storage.tables import Instance, Series, Study

_PATIENT_MATCHERS = {keyword: STUDY_MATCHERS[keyword] for keyword in OF_PATIENT}


@dataclass(frozen=True)
class PatientMatch:
    """A patient and the related counts; the attributes are those of the newest study."""

    patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    number_of_studies: int
    number_of_series: int
    number_of_instances: int


def search_patients(tx: Transaction, query: SearchQuery) -> list[PatientMatch]:
    """Return the matching patients by Patient ID; studies without a Patient ID belong to nobody."""
    statement = (
        select(Study.patient_id, func.count())
        .where(Study.patient_id != "", *conditions(query, _PATIENT_MATCHERS))
        .group_by(Study.patient_id)
        .order_by(Study.patient_id)
        .limit(query.limit)
        .offset(query.offset)
    )
    return [_match(tx, patient_id, studies) for patient_id, studies in tx.execute(statement)]


def _match(tx: Transaction, patient_id: str, studies: int) -> PatientMatch:
    newest = select(Study).where(Study.patient_id == patient_id)
    study = tx.scalars(newest.order_by(Study.study_date.desc(), Study.created_at.desc()).limit(1)).one()
    return PatientMatch(
        patient_id,
        study.patient_name,
        study.patient_birth_date,
        study.patient_sex,
        studies,
        _related(tx, Series, patient_id),
        _related(tx, Instance, patient_id),
    )


def _related(tx: Transaction, table: type[Series] | type[Instance], patient_id: str) -> int:
    statement = (
        select(func.count())
        .select_from(table)
        .join(Study, Study.study_instance_uid == table.study_instance_uid)
        .where(Study.patient_id == patient_id)
    )
    return tx.scalar(statement) or 0
