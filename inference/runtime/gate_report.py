"""GateReport: how far a faster engine is from the plain one, and what is too far."""

from pydantic import BaseModel, ConfigDict

MIN_COSINE = 0.999
MIN_IOU = 0.99


class GateReport(BaseModel):
    """The worst that was found on all images; None where the model has no image encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    embedding_cosine: float | None
    mask_iou: float
    is_text_same: bool

    @property
    def refusal(self) -> str | None:
        """Why the engine must not serve, as a sentence; None where it may."""
        if self.embedding_cosine is not None and not self.embedding_cosine >= MIN_COSINE:
            return f"its image embeddings have cosine {self.embedding_cosine:.4f}, below {MIN_COSINE}"
        if not self.mask_iou >= MIN_IOU:
            return f"its masks have IoU {self.mask_iou:.4f}, below {MIN_IOU}"
        return None if self.is_text_same else "it says other words"
