"""Attributes of the patient, study and series levels: what `includefield=all` adds to a search.

Source: PS3.3 C.7.1 (patient), C.7.2 (study), C.7.3 (series), C.7.4.1 (frame of reference), C.7.5 (equipment).
"""

from typing import Final

from pydicom.datadict import tag_for_keyword

_OF_STUDY = """
    PatientName PatientID IssuerOfPatientID TypeOfPatientID PatientBirthDate PatientBirthTime PatientSex
    OtherPatientIDs OtherPatientNames EthnicGroup PatientComments PatientSpeciesDescription
    PatientAge PatientSize
    PatientWeight MedicalAlerts Allergies SmokingStatus PregnancyStatus
    LastMenstrualDate AdditionalPatientHistory
    StudyInstanceUID StudyDate StudyTime AccessionNumber IssuerOfAccessionNumberSequence
    ReferringPhysicianName StudyDescription StudyID PhysiciansOfRecord NameOfPhysiciansReadingStudy
    RequestingService ProcedureCodeSequence ReasonForPerformedProcedureCodeSequence
    AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence Occupation AdmissionID TimezoneOffsetFromUTC
    ReferencedStudySequence PatientIdentityRemoved DeidentificationMethod ClinicalTrialSponsorName
    ClinicalTrialProtocolID ClinicalTrialSubjectID InstitutionName
"""
_OF_SERIES = """
    Modality SeriesInstanceUID SeriesNumber Laterality SeriesDate SeriesTime SeriesDescription
    SeriesDescriptionCodeSequence PerformingPhysicianName OperatorsName ProtocolName BodyPartExamined
    PatientPosition ReferencedPerformedProcedureStepSequence RequestAttributesSequence
    PerformedProcedureStepID PerformedProcedureStepStartDate PerformedProcedureStepStartTime
    PerformedProcedureStepDescription PerformedProtocolCodeSequence AnatomicalOrientationType
    FrameOfReferenceUID PositionReferenceIndicator Manufacturer InstitutionAddress StationName
    InstitutionalDepartmentName ManufacturerModelName DeviceSerialNumber SoftwareVersions
"""


def _tags(keywords: str) -> frozenset[str]:
    found = (tag_for_keyword(keyword) for keyword in keywords.split())
    return frozenset(f"{tag:08X}" for tag in found if tag is not None)


OF_STUDY: Final = _tags(_OF_STUDY)
OF_SERIES: Final = _tags(_OF_SERIES)
