"""Which column of the index holds which attribute: DICOM keyword to column, by level."""

from collections.abc import Iterator, Mapping
from typing import Final

OF_PATIENT: Final = {
    "PatientID": "patient_id",
    "PatientName": "patient_name",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
}
OF_STUDY: Final = {
    **OF_PATIENT,
    "StudyInstanceUID": "study_instance_uid",
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "AccessionNumber": "accession_number",
    "StudyID": "study_id",
    "StudyDescription": "study_description",
    "ReferringPhysicianName": "referring_physician_name",
}
OF_SERIES: Final = {
    "SeriesInstanceUID": "series_instance_uid",
    "Modality": "modality",
    "SeriesNumber": "series_number",
    "SeriesDescription": "series_description",
    "BodyPartExamined": "body_part_examined",
    "SeriesDate": "series_date",
    "SeriesTime": "series_time",
    "Laterality": "laterality",
}
OF_INSTANCE: Final = {
    "SOPInstanceUID": "sop_instance_uid",
    "SOPClassUID": "sop_class_uid",
    "InstanceNumber": "instance_number",
    "Rows": "rows",
    "Columns": "columns",
    "NumberOfFrames": "number_of_frames",
    "AvailableTransferSyntaxUID": "transfer_syntax_uid",
}


def values_of(row: object, columns: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    """Give keyword and value of these columns of a row or match; None where the index holds nothing."""
    return ((keyword, getattr(row, column)) for keyword, column in columns.items())
