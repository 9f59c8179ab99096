"""The rules that come with the built-in model sim4seg-s, each with a question of its training."""

from dicom_node.routing import Route

MODEL = "sim4seg-s"
VL_ENDOSCOPIC_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.77.1.1",  # VL Endoscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.1.1",  # Video Endoscopic Image Storage
)
NOT_LIMBS = ("CHEST", "THORAX", "LUNG", "ABDOMEN", "BREAST", "HEAD", "SKULL", "TEETH", "JAW", "SPINE")

DEFAULT_ROUTES: tuple[Route, ...] = (
    Route(
        name="breast-ultrasound",
        modality=("US",),
        body_part=("BREAST",),
        model=MODEL,
        query="Please segment the breast lesion and tell me whether it is benign or malignant.",
        target="breast lesion",
    ),
    Route(
        name="cardiac-mr",
        modality=("MR",),
        body_part=("HEART", "CARDIAC"),
        model=MODEL,
        query="Please outline the left ventricular cavity in this short-axis slice.",
        target="left ventricular cavity",
    ),
    Route(
        name="bone-radiograph",
        modality=("DX", "CR", "RG"),
        not_body_part=NOT_LIMBS,
        model=MODEL,
        query="Is there a fracture in this radiograph? Outline it.",
        target="fracture",
    ),
    Route(
        name="endoscopy",
        modality=("ES",),
        not_body_part=("BRONCHUS", "LARYNX", "BLADDER", "NOSE"),
        model=MODEL,
        query="Is there a polyp in this colonoscopy frame? Please outline it.",
        target="polyp",
    ),
    Route(
        name="endoscopy-photograph",
        modality=("XC",),
        sop_class=VL_ENDOSCOPIC_CLASSES,
        model=MODEL,
        query="Is there a polyp in this colonoscopy frame? Please outline it.",
        target="polyp",
    ),
    Route(
        name="chest-ct",
        modality=("CT",),
        body_part=("CHEST", "LUNG", "THORAX"),
        model=MODEL,
        query="Please outline the pulmonary nodule in this CT.",
        target="lung nodule",
        note="The model saw patches of 128 px around nodules only: on whole slices a trial, not a detector.",
    ),
    Route(
        name="dermoscopy",
        modality=("XC", "DERM", "DMS"),
        body_part=("SKIN",),
        model=MODEL,
        query="Is this skin lesion a melanoma?",
        note="Dermoscopy only; a diagnosis without an outline.",
    ),
)
