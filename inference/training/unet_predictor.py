"""The rival behind the door of a predictor, so that it is scored as every model is. PyTorch, one thread."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from inference.contract import Image, Prediction, Prompt
from inference.models.checkpoints import load_into, load_tensors, sha256
from inference.postprocess import mask_at_source
from inference.preprocess import fit
from inference.runtime.acceptance import check_pixels
from inference.training.unet_stage import CHANNELS, build_unet


class UnetPredictor:
    """Masks only; it is asked nothing and says nothing."""

    name, version = "unet-s", "0"

    def __init__(self, weights: Path, *, side: int = 256, channels: Sequence[int] = CHANNELS) -> None:
        self._module = build_unet(channels).eval()
        load_into(self._module, load_tensors(weights)[0])
        self._side = side
        self.digest = sha256(weights)

    def predict(self, image: Image, prompt: Prompt) -> Prediction:  # noqa: ARG002 - a U-Net cannot be asked
        """The mask of one image.

        Raises
        ------
        InputRejected
        """
        check_pixels(image)
        started = time.perf_counter()
        frame, pixels = fit(image.pixels, self._side)
        with torch.no_grad():
            logits = self._module(torch.from_numpy(pixels))[0, 0].numpy()
        mask = mask_at_source(logits, frame.source_hw)
        nowhere = np.zeros((16, 16), np.float32)
        return Prediction(
            mask=mask,
            has_region=bool(mask.any()),
            text="",
            reasoning="",
            diagnosis=None,
            target=None,
            modality=None,
            predicted_iou=0.0,
            similarity=nowhere,
            region=nowhere > 0,
            seconds={"total": time.perf_counter() - started},
        )

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:  # noqa: ARG002 - each image is looked at for itself
        """One prediction per image."""
        return [self.predict(image, prompt) for image in images]
