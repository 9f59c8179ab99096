"""6 RUN. Predictor over the frames of a series -> a mask of each, and the answer about the key frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dicom_node.bridging import bridge_gaps
from dicom_node.cine import NoStack, cine_grid
from dicom_node.frames import Frame, SourceSeries
from dicom_node.mask_stack import MaskStack
from dicom_node.ventricle import VentricleVolumes, measure_ventricle
from inference.contract import Image, Prediction, Predictor, Prompt

FRAMES_AT_ONCE: Final = 8  # images handed to the predictor in one call: bounds what it may hold
MIN_REGION_PX: Final = 4  # fewer pixels than this are no region
VENTRICLE: Final = "left ventricular cavity"  # the model's word for what beats


@dataclass(frozen=True)
class AnalysisRequest:
    """What to ask of a series; `target` is what the rule expects, for an answer without one."""

    query: str
    target: str | None = None
    report: str = ""  # what was said of the study before, for models that can read it
    tell: Callable[[int, int], None] = lambda _done, _of: None  # how many images are read, of how many

    @property
    def prompt(self) -> Prompt:
        """What the predictor is asked."""
        return Prompt(self.query, self.report)


@dataclass(frozen=True, eq=False)
class Reading:
    """What the predictor said about a series."""

    key: Frame
    prediction: Prediction  # of the key frame: its text, diagnosis and confidence are the result's
    masks: MaskStack  # one (H, W) per frame
    target: str | None
    ventricle: VentricleVolumes | None  # of a stack of the heart
    why_no_volume: str = ""  # a sentence, where the heart was asked for and is no stack
    bridged: int = 0  # slices whose outline is what their neighbours share

    @property
    def has_region(self) -> bool:
        """Whether anything was outlined."""
        return bool(self.masks.marked)


def read_series(series: SourceSeries, predictor: Predictor, request: AnalysisRequest) -> Reading:
    """The answer about the middle frame, a mask of each, the answer about the frame with most of it."""
    prompt = request.prompt
    middle = len(series.frames) // 2
    first = predictor.predict(Image(series.frames[middle].image), prompt)
    masks = _masks(series.frames, predictor, request, first, middle)
    bridged = bridge_gaps(series.frames, masks, MIN_REGION_PX)
    target = first.target or request.target
    ventricle, why_not = _ventricle(series.frames, masks, target)
    key = _key(masks, middle, ventricle)
    answer = first if key == middle else predictor.predict(Image(series.frames[key].image), prompt)
    told = answer.target or request.target
    return Reading(series.frames[key], answer, masks, told, ventricle, why_not, bridged)


def _masks(
    frames: Sequence[Frame], predictor: Predictor, request: AnalysisRequest, first: Prediction, middle: int
) -> MaskStack:
    """The mask of each frame, as predict() would give it; only the masks are kept."""
    masks = MaskStack(frames[middle].size, len(frames))
    _keep(masks, middle, first)
    others = [index for index in range(len(frames)) if index != middle]
    for start in range(0, len(others), FRAMES_AT_ONCE):
        request.tell(start + 1, len(frames))
        chunk = others[start : start + FRAMES_AT_ONCE]
        images = [Image(frames[index].image) for index in chunk]
        for index, prediction in zip(chunk, predictor.segment(images, request.prompt, first), strict=True):
            _keep(masks, index, prediction)
    return masks


def _keep(masks: MaskStack, index: int, prediction: Prediction) -> None:
    if prediction.has_region and int(prediction.mask.sum()) >= MIN_REGION_PX:
        masks.put(index, prediction.mask)


def _ventricle(
    frames: Sequence[Frame], masks: MaskStack, target: str | None
) -> tuple[VentricleVolumes | None, str]:
    """Volumes of the heart, where it was asked for and its planes allow it; else why not."""
    is_heart = target == VENTRICLE and frames[0].source.get("Modality") == "MR"
    if not is_heart or not masks.marked:
        return None, ""
    try:
        return measure_ventricle(frames, masks, cine_grid(frames)), ""
    except NoStack as error:
        return None, str(error)


def _key(masks: MaskStack, middle: int, ventricle: VentricleVolumes | None) -> int:
    """The frame with most of the region, of the filled heart where there is one; the middle one if none."""
    candidates = list(range(len(masks)))
    if ventricle is not None:
        candidates = [members[ventricle.end_diastole] for members in ventricle.grid.frames]
    areas = masks.areas_px
    largest = max(candidates, key=lambda index: areas[index])
    is_middle = middle in candidates and areas[middle] == areas[largest]
    return middle if is_middle or areas[largest] == 0 else largest
