"""What the demo sends: the synthetic samples, a DICOM folder, or PNG and JPEG files made into DICOM."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from dicom_node.make_dicom import BadImage, SeriesDetails, make_dicom

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
MAX_FILES = 20_000


@dataclass(frozen=True)
class DemoStudy:
    """One study to send."""

    study_instance_uid: str
    title: str  # modality and body part; never a patient attribute
    paths: tuple[Path, ...]


def studies_at(path: Path, made: Path, modality: str, body_part: str) -> list[DemoStudy]:
    """The studies of a DICOM file or folder; images among the files become one study, written into `made`.

    Raises
    ------
    BadImage
        If there is neither a DICOM file nor a PNG or JPEG file.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES][:MAX_FILES]
    if images:
        details = SeriesDetails(modality=modality, body_part=body_part)
        return group(make_dicom(images, made, details))
    studies = group([file for file in files[:MAX_FILES] if file.is_file()])
    if not studies:
        raise BadImage(f"{path} holds no DICOM, PNG or JPEG file; give a file or folder that does")
    return studies


def group(paths: list[Path]) -> list[DemoStudy]:
    """The DICOM files among `paths`, study by study, in the order in which they come."""
    members: dict[str, list[Path]] = defaultdict(list)
    titles: dict[str, str] = {}
    for path in paths:
        found = _describe(path)
        if found is None:
            continue
        uid, title = found
        members[uid].append(path)
        titles.setdefault(uid, title)
    return [DemoStudy(uid, titles[uid], tuple(files)) for uid, files in members.items()]


def _describe(path: Path) -> tuple[str, str] | None:
    keywords = ["StudyInstanceUID", "Modality", "BodyPartExamined"]
    try:
        dataset = dcmread(path, specific_tags=keywords, stop_before_pixels=True)
    except (InvalidDicomError, OSError):
        return None
    if not dataset.get("StudyInstanceUID"):
        return None
    title = f"{dataset.get('Modality') or '?'} {dataset.get('BodyPartExamined') or ''}".strip()
    return str(dataset.StudyInstanceUID), title
