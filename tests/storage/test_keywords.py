import pytest
from pydicom.datadict import tag_for_keyword

from storage import keywords
from storage.search import INSTANCE_MATCHERS, SERIES_MATCHERS, STUDY_MATCHERS
from storage.tables import Instance, Series, Study

LEVELS = [
    (keywords.OF_STUDY, Study, STUDY_MATCHERS),
    (keywords.OF_SERIES, Series, SERIES_MATCHERS),
    (keywords.OF_INSTANCE, Instance, INSTANCE_MATCHERS),
]


@pytest.mark.parametrize(("columns", "table", "matchers"), LEVELS, ids=["study", "series", "instance"])
def test_every_keyword_is_one_and_has_its_column(columns, table, matchers):
    assert [keyword for keyword in columns if tag_for_keyword(keyword) is None] == []
    assert set(columns.values()) <= set(table.__table__.columns.keys())
    assert set(matchers) & {*columns}, "what is shown can be searched for"


def test_values_come_in_the_order_of_the_table():
    study = Study(patient_id="P1", patient_name="", patient_sex="O")
    given = dict(keywords.values_of(study, keywords.OF_PATIENT))
    assert given == {"PatientID": "P1", "PatientName": "", "PatientBirthDate": None, "PatientSex": "O"}
    assert list(given) == list(keywords.OF_PATIENT)
