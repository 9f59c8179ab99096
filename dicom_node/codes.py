"""Every coded concept we emit: SNOMED CT / DCM / UCUM value and meaning, with its source context group."""

from dataclasses import dataclass

from pydicom.sr.coding import Code


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


def _dcm(value: str, meaning: str) -> Code:
    return Code(value, "DCM", meaning)


# Names of content items. Source: PS3.16 TID 1500, 1501, 1410, 4019.
IMPRESSION = _dcm("121073", "Impression")  # CID 7002
FINDING_TEXT = _dcm("121071", "Finding")  # TID 2000 family: Finding as TEXT
CONCLUSION = _dcm("121077", "Conclusion")  # CID 7002
COMMENT = _dcm("121106", "Comment")  # CID 12101
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")  # TID 1500 row 12
CERTAINTY = _dcm("111013", "Certainty of Impression")  # TID 4006: percent, 0 none to 100 certain
SUMMARY = _dcm("111017", "CAD Processing and Findings Summary")  # TID 4001
WITH_FINDINGS = _dcm("111242", "All algorithms succeeded; with findings")  # CID 6047
WITHOUT_FINDINGS = _dcm("111241", "All algorithms succeeded; without findings")  # CID 6047
NO_ALGORITHM_SUCCEEDED = _dcm("111245", "No algorithms succeeded; without findings")  # CID 6047

IMAGE_LIBRARY = _dcm("111028", "Image Library")  # TID 1600
IMAGE_LIBRARY_GROUP = _dcm("126200", "Image Library Group")  # TID 1600
SOURCE = _sct("260753009", "Source")  # TID 1601
MODALITY = _dcm("121139", "Modality")  # TID 1602
PIXEL_DATA_ROWS = _dcm("110910", "Pixel Data Rows")  # TID 1602
PIXEL_DATA_COLUMNS = _dcm("110911", "Pixel Data Columns")  # TID 1602
DEVICE = _dcm("121007", "Device")  # CID 270
OF_INTEREST = _dcm("113000", "Of Interest")  # CID 7010
IMAGING_REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")  # CID 7000

# Measurements.
AREA = _sct("42798000", "Area")  # CID 7469
VOLUME = _sct("118565006", "Volume")  # CID 7469
LONG_AXIS = _sct("103339001", "Long axis")  # CID 7470
SHORT_AXIS = _sct("103340004", "Short axis")  # CID 7470
END_DIASTOLIC_VOLUME = Code("8821-1", "LN", "Left Ventricular ED Volume")  # CID 3835
END_SYSTOLIC_VOLUME = Code("8823-7", "LN", "Left Ventricular ES Volume")  # CID 3835
STROKE_VOLUME = _sct("90096001", "Stroke Volume")  # CID 3835
EJECTION_FRACTION = Code("8811-2", "LN", "Left ventricular ejection fraction by MR")  # CID 3833

# Units.
MILLIMETRE = Code("mm", "UCUM", "mm")  # CID 7460
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")  # CID 7461
CUBIC_CENTIMETRE = Code("cm3", "UCUM", "cubic centimeter")  # CID 7462
MILLILITRE = Code("mL", "UCUM", "milliliter")
PERCENT = Code("%", "UCUM", "Percent")  # CID 82
PIXELS = Code("{pixels}", "UCUM", "pixels")  # UCUM annotation: a count, for images without calibration

# Algorithm and equipment.
ARTIFICIAL_INTELLIGENCE = _dcm("123110", "Artificial Intelligence")  # CID 7162
PROCESSING_EQUIPMENT = _dcm("109102", "Processing Equipment")  # CID 7005

SOURCE_IMAGE = _dcm("121322", "Source image for image processing operation")  # CID 7202
SEGMENTATION = _dcm("113076", "Segmentation")  # CID 7203

# Segmented property categories. Source: CID 7150.
ABNORMAL = _sct("49755003", "Morphologically Abnormal Structure")
ANATOMICAL = _sct("91723000", "Anatomical Structure")

PRESENT = _sct("52101004", "Present")  # CID 240
ABSENT = _sct("272519000", "Absent")  # CID 240
MILD = _sct("255604002", "Mild")  # CID 3716
REDUCED_VENTRICLE_FUNCTION = _sct("371862006", "Depression of left ventricular systolic function")  # CID 3728
DIAGNOSIS = _sct("439401001", "Diagnosis")  # observable entity; not in a context group

# Anatomic regions. Source: CID 4 and CID 4031.
BREAST = _sct("76752008", "Breast")
HEART = _sct("80891009", "Heart")
BONE = _sct("272673000", "Bone")  # CID 6202
COLON = _sct("71854001", "Colon")
LUNG = _sct("39607008", "Lung")
SKIN = _sct("39937001", "Skin")
PERIPHERAL_NERVE = _sct("84782009", "Peripheral nerve")  # CID 7151
BODY = _sct("123037004", "Body structure")

# Body Part Examined -> region, for findings that can lie in many places. Source: PS3.16 Annex L.
REGIONS: dict[str, Code] = {
    "HAND": _sct("85562004", "Hand"),
    "WRIST": _sct("74670003", "Wrist joint"),
    "FINGER": _sct("7569003", "Finger"),
    "FOREARM": _sct("14975008", "Forearm"),
    "ELBOW": _sct("16953009", "Elbow joint"),
    "ARM": _sct("40983000", "Upper arm"),
    "HUMERUS": _sct("40983000", "Upper arm"),
    "SHOULDER": _sct("16982005", "Shoulder"),
    "CLAVICLE": _sct("51299004", "Clavicle"),
    "PELVIS": _sct("816092008", "Pelvis"),
    "HIP": _sct("29836001", "Hip"),
    "THIGH": _sct("68367000", "Thigh"),
    "FEMUR": _sct("68367000", "Thigh"),
    "KNEE": _sct("72696002", "Knee"),
    "LEG": _sct("30021000", "Lower leg"),
    "TIBIA": _sct("30021000", "Lower leg"),
    "ANKLE": _sct("70258002", "Ankle joint"),
    "FOOT": _sct("56459004", "Foot"),
    "TOE": _sct("29707007", "Toe"),
}


@dataclass(frozen=True)
class Target:
    """What a segment shows, in codes."""

    category: Code  # CID 7150
    kind: Code  # CID 7151
    region: Code  # CID 4
    label: str  # the model's own word
    colour_lab: tuple[float, float, float]  # CIELab, for the overlay


UNKNOWN_TARGET = "region"

# Kinds that CID 7151 (extensible) does not list are from the group named beside them.
TARGETS: dict[str, Target] = {
    "breast lesion": Target(
        ABNORMAL, _sct("52988006", "Lesion"), BREAST, "breast lesion", (70.0, 15.0, 70.0)
    ),
    "left ventricular cavity": Target(
        ANATOMICAL, _sct("87878005", "Left ventricle"), HEART, "left ventricular cavity", (60.0, 60.0, 40.0)
    ),
    "fracture": Target(  # SNOMED CT morphology, not in CID 7151
        ABNORMAL, _sct("72704001", "Fracture"), BONE, "fracture", (70.0, 40.0, 65.0)
    ),
    "polyp": Target(  # CID 6201
        ABNORMAL, _sct("68496003", "Polyp of colon"), COLON, "polyp", (75.0, -40.0, 50.0)
    ),
    "lung nodule": Target(ABNORMAL, _sct("27925004", "Nodule"), LUNG, "lung nodule", (70.0, 15.0, 70.0)),
    "nerve": Target(ANATOMICAL, PERIPHERAL_NERVE, PERIPHERAL_NERVE, "nerve", (85.0, -10.0, 75.0)),
    "skin lesion": Target(  # CID 6054
        ABNORMAL, _sct("95324001", "Skin lesion"), SKIN, "skin lesion", (70.0, -35.0, -20.0)
    ),
    UNKNOWN_TARGET: Target(ABNORMAL, _sct("52988006", "Lesion"), BODY, UNKNOWN_TARGET, (70.0, 15.0, 70.0)),
}


@dataclass(frozen=True)
class CodedDiagnosis:
    """A diagnosis as question and answer, as a qualitative evaluation says it."""

    question: Code
    answer: Code


_FRACTURE_OF_BONE = _sct("125605004", "Fracture of bone")  # disorder; not in a context group
_MELANOMA = _sct("1162635006", "Malignant melanoma")  # CID 638

DIAGNOSES: dict[str, CodedDiagnosis] = {
    "benign": CodedDiagnosis(DIAGNOSIS, _sct("30807003", "Benign")),  # CID 6063
    "malignant": CodedDiagnosis(DIAGNOSIS, _sct("21594007", "Malignant")),  # CID 6063
    "fracture": CodedDiagnosis(_FRACTURE_OF_BONE, PRESENT),
    "no fracture": CodedDiagnosis(_FRACTURE_OF_BONE, ABSENT),
    "polyp": CodedDiagnosis(DIAGNOSIS, _sct("68496003", "Polyp of colon")),  # CID 6201
    "lung nodule": CodedDiagnosis(DIAGNOSIS, _sct("27925004", "Nodule")),  # CID 6102; the site says lung
    "melanoma": CodedDiagnosis(_MELANOMA, PRESENT),
    "not melanoma": CodedDiagnosis(_MELANOMA, ABSENT),
}

# Procedure reported. Source: CID 100 (extensible); SNOMED CT procedures otherwise.
IMAGING_PROCEDURE = _sct("363679005", "Imaging procedure")  # CID 100
PROCEDURES: dict[str, Code] = {
    "US": _sct("16310003", "Diagnostic ultrasonography"),  # CID 6028
    "CT": _sct("77477000", "Computed tomography"),  # CID 10005
    "MR": _sct("113091000", "Magnetic resonance imaging"),
    "DX": _sct("363680008", "Radiographic imaging procedure"),
    "CR": _sct("363680008", "Radiographic imaging procedure"),
}


def target_of(name: str | None) -> Target:
    """Codes of a model's target; an unknown one is called a region and coded as a lesion."""
    return TARGETS.get((name or "").strip().lower(), TARGETS[UNKNOWN_TARGET])


def site_of(target: Target, body_part: str) -> Code:
    """Where the finding lies: the examined body part for bones, else what the target implies."""
    if target.region == BONE:
        return REGIONS.get(body_part.strip().upper(), BONE)
    return target.region


def procedure_of(modality: str) -> Code:
    """Coded procedure that a modality's images come from."""
    return PROCEDURES.get(modality, IMAGING_PROCEDURE)


# Modality of an image. Source: CID 29.
MODALITIES: dict[str, Code] = {
    "US": _dcm("US", "Ultrasound"),
    "ES": _dcm("ES", "Endoscopy"),
    "XC": _dcm("XC", "External-camera Photography"),
    "DX": _dcm("DX", "Digital Radiography"),
    "CR": _dcm("CR", "Computed Radiography"),
    "MR": _dcm("MR", "Magnetic Resonance"),
    "CT": _dcm("CT", "Computed Tomography"),
}
OTHER_MODALITY = _dcm("OT", "Other Modality")
