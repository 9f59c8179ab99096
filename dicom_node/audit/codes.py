"""Codes of audit messages: those of DICOM's own scheme, and the two of RFC 3881 that A.5.3 asks for.

Written out, since loading pydicom's dictionary of codes takes a tenth of a second in every process; a test
compares them with it.

Source: PS3.16 Annex D (DCM 110100 ff.), CID 400, 401, 402, 403, 404; PS3.15 A.5.1.2.4.
"""

from typing import Final, NamedTuple


class Code(NamedTuple):
    """A coded concept."""

    value: str
    scheme: str
    meaning: str


APPLICATION_ACTIVITY: Final = Code("110100", "DCM", "Application Activity")
AUDIT_LOG_USED: Final = Code("110101", "DCM", "Audit Log Used")
BEGIN_TRANSFERRING: Final = Code("110102", "DCM", "Begin Transferring DICOM Instances")
INSTANCES_ACCESSED: Final = Code("110103", "DCM", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED: Final = Code("110104", "DCM", "DICOM Instances Transferred")
STUDY_DELETED: Final = Code("110105", "DCM", "DICOM Study Deleted")
PATIENT_RECORD: Final = Code("110110", "DCM", "Patient Record")
QUERY: Final = Code("110112", "DCM", "Query")
SECURITY_ALERT: Final = Code("110113", "DCM", "Security Alert")
USER_AUTHENTICATION: Final = Code("110114", "DCM", "User Authentication")

APPLICATION_START: Final = Code("110120", "DCM", "Application Start")
APPLICATION_STOP: Final = Code("110121", "DCM", "Application Stop")
LOGIN: Final = Code("110122", "DCM", "Login")
LOGOUT: Final = Code("110123", "DCM", "Logout")
NODE_AUTHENTICATION: Final = Code("110126", "DCM", "Node Authentication")
RESTRICTED_FUNCTION: Final = Code("110132", "DCM", "Use of Restricted Function")
RECORDING_STOPPED: Final = Code("110133", "DCM", "Audit Recording Stopped")

APPLICATION: Final = Code("110150", "DCM", "Application")
LAUNCHER: Final = Code("110151", "DCM", "Application Launcher")
DESTINATION: Final = Code("110152", "DCM", "Destination Role ID")
SOURCE: Final = Code("110153", "DCM", "Source Role ID")

STUDY_UID: Final = Code("110180", "DCM", "Study Instance UID")
SOP_CLASS_UID: Final = Code("110181", "DCM", "SOP Class UID")
NODE_ID: Final = Code("110182", "DCM", "Node ID")
PATIENT_NUMBER: Final = Code("2", "RFC-3881", "Patient Number")
URI: Final = Code("12", "RFC-3881", "URI")
