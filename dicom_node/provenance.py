"""7 SEG and SR, what both say alike: whose images, which model, when, and UIDs that a repeat gives again."""

import datetime
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from highdicom import ContributingEquipment
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node import codes
from dicom_node.context import NO_CONTEXT, ResultContext
from dicom_node.product import MANUFACTURER

RESEARCH_USE: Final = "Research use only. Not a medical device."
NAMESPACE: Final = uuid.UUID("6b1f5f0e-7f0a-5d0c-9e5a-3a54c7a1d9b2")
RESULTS_VERSION: Final = (
    "3"  # raise it when the same inputs shall give other objects, so that UIDs change too
)
UNKNOWN_DATE, UNKNOWN_TIME = "19000101", "000000"
UTF8: Final = "ISO_IR 192"

PATIENT_AND_STUDY: Final = (
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDescription",
)
DATE_AND_TIME: Final = (
    ("ContentDate", "ContentTime"),
    ("AcquisitionDate", "AcquisitionTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)
_DATE = re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_TIMEZONE = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")


@dataclass(frozen=True)
class ModelIdentity:
    """Which model package spoke."""

    name: str
    version: str
    digest: str  # sha256 over the package's file hashes


@dataclass(frozen=True)
class Provenance:
    """All that the identity of a result hangs on."""

    study_instance_uid: str
    series_instance_uid: str
    input_digests: tuple[str, ...]  # sha256 of the source data sets, sorted
    model: ModelIdentity
    query: str
    context: ResultContext = NO_CONTEXT

    def uid(self, kind: str) -> str:
        """The UID of one part of the result; the same inputs give the same. Source: PS3.5 B.2."""
        words = (
            RESULTS_VERSION,
            self.study_instance_uid,
            self.series_instance_uid,
            *self.input_digests,
            self.model.digest,
            self.query,
            *self.context.words(),
            kind,
        )
        return UID(f"2.25.{uuid.uuid5(NAMESPACE, '|'.join(words)).int}")

    def equipment(self) -> ContributingEquipment:
        """The model as an item of Contributing Equipment Sequence (IHE AIR asks for one per algorithm)."""
        item = ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=codes.PROCESSING_EQUIPMENT,
            manufacturer_model_name=self.model.name[:64],
            software_versions=self.model.version[:64],
            device_serial_number=self.model.digest[:64],
            contribution_description=f"Processing algorithm. {RESEARCH_USE}",
        )
        item.DeviceUID = self.device_uid
        return item

    @property
    def device_uid(self) -> UID:
        """The model package as a device: the same files are the same device."""
        return UID(f"2.25.{uuid.uuid5(NAMESPACE, self.model.digest).int}")


def patient_and_study(source: Dataset) -> Dataset:
    """Patient and study attributes of `source`; dates and sexes that no reader takes are left empty."""
    context = Dataset()
    for keyword in ("PatientID", "PatientName", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
        setattr(context, keyword, str(source.get(keyword) or ""))
    sex = str(source.get("PatientSex") or "").strip().upper()
    context.PatientSex = sex if sex in {"M", "F", "O"} else ""
    context.PatientBirthDate = valid_date(source.get("PatientBirthDate"))
    context.StudyInstanceUID = str(source.StudyInstanceUID)
    context.StudyDate = valid_date(source.get("StudyDate"))
    context.StudyTime = valid_time(source.get("StudyTime"))
    for keyword in PATIENT_AND_STUDY:
        if source.get(keyword):
            setattr(context, keyword, source[keyword].value)
    return context


def valid_date(value: object) -> str:
    """A DICOM date, or "" for anything else."""
    text = str(value or "").strip()
    return text if _DATE.fullmatch(text) else ""


def valid_time(value: object) -> str:
    """A DICOM time, or "" for anything else."""
    text = str(value or "").strip()
    return text if _TIME.fullmatch(text) else ""


@dataclass(frozen=True, order=True)
class Stamp:
    """A date and time, and how far it is from UTC."""

    date: str = UNKNOWN_DATE
    time: str = UNKNOWN_TIME
    timezone: str = "+0000"


def latest_stamp(sources: Sequence[Dataset]) -> Stamp:
    """When the newest image was made: our objects carry it too, since now() would differ in a repeat.

    Where the images name no time zone, their times are in that of this machine. Source: PS3.3 C.12.1.1.8.
    """
    found: list[Stamp] = []
    for source in sources:
        for date_keyword, time_keyword in DATE_AND_TIME:
            date = valid_date(source.get(date_keyword))
            if date:
                time = valid_time(source.get(time_keyword)) or UNKNOWN_TIME
                found.append(Stamp(date, time, _timezone(source, date, time)))
                break
    return max(found, default=Stamp())


def _timezone(source: Dataset, date: str, time: str) -> str:
    given = str(source.get("TimezoneOffsetFromUTC") or "").strip()
    if _TIMEZONE.fullmatch(given):
        return given
    padded = time[:6].ljust(6, "0")
    try:
        here = datetime.datetime.strptime(date + padded, "%Y%m%d%H%M%S").astimezone()
    except ValueError:  # 30 February, or a second that was leapt
        return Stamp.timezone
    return here.strftime("%z")[:5]


def stamp(dataset: Dataset, provenance: Provenance, when: Stamp) -> None:
    """Replace what highdicom took from the clock and from chance; say which device made the object."""
    date, time = when.date, when.time
    dataset.TimezoneOffsetFromUTC = when.timezone
    dataset.DeviceUID = provenance.device_uid
    for keyword in ("InstanceCreationDate", "ContentDate", "SeriesDate"):
        setattr(dataset, keyword, date)
    for keyword in ("InstanceCreationTime", "ContentTime", "SeriesTime"):
        setattr(dataset, keyword, time)
    for item in dataset.ContributingEquipmentSequence:
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    dataset.InstanceCreatorUID = provenance.device_uid
