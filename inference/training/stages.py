"""The stages of training sim4seg-s: segmenter, language model, both together, and then one of them alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from tokenizers import Tokenizer
from torch import Tensor, nn

from inference.datasets.m3ds import KINDS
from inference.datasets.sample import ImageBatch, M3dsSampler, Sample, collate
from inference.datasets.text import TextBatch, encode_batch
from inference.models.checkpoints import load_into, load_tensors, with_prefix
from inference.models.lite_trunk import LiteTrunk
from inference.models.sam import MaskDecoder, PromptEncoder
from inference.models.sim4seg import SMALL, Sim4Seg, Sim4SegConfig
from inference.models.tiny_sam import TinyConfig, TinyImageEncoder
from inference.prompts import DIAGNOSES, TARGETS, SegPlace
from inference.training.losses import LossWeights, iou_loss, mask_loss, region_loss, text_loss

Losses = dict[str, Tensor]
SAM_PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
LVLM_PARTS = ("vision_tower", "projector", "language_model", "text_hidden_fcs")
MASK_PARTS = ("model.image_encoder.", "model.mask_decoder.")  # of a Learner
MODALITIES: tuple[str, ...] = tuple(TARGETS)
PROMPT_NOISE = 0.05  # per component; [SEG] states of different images were measured 0.03 apart


@dataclass(frozen=True)
class Phase:
    """A stretch of a stage at one image size."""

    side: int  # pixels
    minutes: float
    batch: int
    decoder_share: float = 1.0  # of the steps that run the mask decoder; the others train the encoder alone


@dataclass(frozen=True)
class Bench:
    """What every stage works with."""

    sampler: M3dsSampler
    validation: list[Sample]
    weights: LossWeights
    frame_side: int  # pixels
    tokenizer: Tokenizer
    seg_place: SegPlace = "before"  # where the answer says [SEG]: before the chain, as in the paper, or after


class Stage(Protocol):
    """What the training loop needs: a module, a loss on fresh samples, a score on fixed ones."""

    module: nn.Module
    bench: Bench

    def begin(self, settings: dict[str, Any], start: Sequence[Path]) -> None:
        """Take the recipe's settings of this stage, and the weights to start from."""

    def losses(self, phase: Phase) -> Losses:
        """The weighted losses of a fresh batch, by name."""

    def validate(self, phase: Phase) -> dict[str, float]:
        """The scores of the fixed validation samples, by name."""


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def mixed_precision() -> torch.autocast:
    """Products in bfloat16 on the device that this run works on."""
    return torch.autocast(torch.get_default_device().type, torch.bfloat16)


def channels_last(module: ModuleT) -> ModuleT:
    """Lay `module`'s convolutions out channels last: a fifth faster on a CPU."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


class Segmenter(nn.Module):
    """Image encoder, prompt encoder and mask decoder with a noisy constant in place of [SEG].

    The noise keeps the decoder from leaning on a prompt that the language model will replace.
    """

    def __init__(self, config: Sim4SegConfig) -> None:
        super().__init__()
        if not isinstance(config.encoder, TinyConfig):
            raise TypeError("only the small image encoder is trained here")
        self.image_encoder = TinyImageEncoder(config.encoder)
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = MaskDecoder(config.decoder)
        self.constant_prompt = nn.Parameter(torch.randn(1, 1, 256) * 0.02)
        self.direct_head = nn.Conv2d(256, 1, 1)

    def forward(self, pixels: Tensor, region: Tensor, has_region: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Masks of a batch.

        Parameters
        ----------
        pixels
            (B, 3, S, S), normalised.
        region
            (B, g, g), 0 or 1.
        has_region
            (B,) bool: False gives the 'no mask' prompt.

        Returns
        -------
        tuple
            Logits (B, 1, S, S); predicted IoU (B, 1); logits read straight off the embedding
            (B, 1, S/4, S/4), which only training uses: without them the encoder learns too slowly.
        """
        image = self.image_encoder(pixels)
        batch, _, height, width = image.shape
        with_region = self.prompt_encoder.embed_region(region, height, width)
        without = self.prompt_encoder.no_mask(height, width)
        dense = torch.where(has_region[:, None, None, None], with_region, without)
        positions = self.prompt_encoder.pe_layer(height, width)
        prompt = self.constant_prompt.detach().expand(batch, -1, -1)
        if self.training:
            prompt = prompt + PROMPT_NOISE * torch.randn_like(prompt)
        logits, iou = self.mask_decoder(image, positions, prompt, dense)
        return logits, iou, self.direct_head(image)


def simulate_region(batch: ImageBatch, rng: Generator, top_k: int = 36) -> Tensor:
    """Region prompts (B, g, g) as an imperfect model would give them: shifted, noisy, sometimes wrong."""
    count, grid, _ = batch.cells.shape
    smooth = F.avg_pool2d(batch.cells[:, None], 3, 1, 1)[:, 0] + batch.cells
    for i in range(count):
        dy, dx = rng.integers(-1, 2, 2)
        smooth[i] = torch.roll(smooth[i], (int(dy), int(dx)), (0, 1))
    noise = torch.as_tensor(rng.standard_normal((count, 1, grid, grid)).astype(np.float32))
    level = torch.as_tensor(rng.choice((0.05, 0.2, 0.6, 3.0), (count, 1, 1), p=(0.3, 0.35, 0.2, 0.15)))
    scores = smooth + F.avg_pool2d(noise, 3, 1, 1)[:, 0] * level.float()
    return top_cells(scores, batch.valid_cells, top_k)


def top_cells(scores: Tensor, valid: Tensor, top_k: int) -> Tensor:
    """0/1 map (B, g, g) of the `top_k` best valid cells of `scores`."""
    flat = scores.masked_fill(valid < 0.5, -1e9).flatten(1)
    chosen = torch.zeros_like(flat).scatter_(1, flat.topk(top_k, dim=1).indices, 1.0)
    return chosen.view_as(scores) * valid


def prepare_trunk(encoder: nn.Module, settings: dict[str, Any]) -> None:
    """ImageNet's weights where the recipe says so, and what of the encoder's trunk is to stay as it is."""
    trunk = encoder.get_submodule("trunk")
    if not isinstance(trunk, LiteTrunk):
        raise TypeError("only the small encoders are trained here")
    if settings.get("trunk") == "imagenet":
        from inference.training.imagenet import load_imagenet  # noqa: PLC0415 - its weights are 19 MB

        load_imagenet(trunk)
    trunk.keep(settings.get("kept_stages", 0))


class SegmenterStage:
    """Stage A: stands in for SAM's pre-training, which may not be downloaded here."""

    def __init__(self, bench: Bench, config: Sim4SegConfig = SMALL) -> None:
        self._segmenter = channels_last(Segmenter(config))
        self.module: nn.Module = self._segmenter
        self.bench = bench

    def begin(self, settings: dict[str, Any], start: Sequence[Path]) -> None:
        """Take an earlier segmenter (perhaps without a head) or a whole model's SAM parts."""
        prepare_trunk(self._segmenter.image_encoder, settings)
        for path in start:
            tensors, _ = load_tensors(path)
            whole = {n: v for n, v in with_prefix(tensors, "model.").items() if n.startswith(SAM_PARTS)}
            self.module.load_state_dict(whole or tensors, strict=False)

    def losses(self, phase: Phase) -> Losses:
        """One batch: mask loss of the paper's weights, plus SAM's IoU head."""
        batch = collate(
            self.bench.sampler.draw(phase.batch, only_regions=True), self.bench.frame_side, phase.side
        )
        coarse = F.avg_pool2d(batch.masks, 4)
        rng = self.bench.sampler.rng
        if rng.random() >= phase.decoder_share:
            with mixed_precision():
                direct = self._segmenter.direct_head(self._segmenter.image_encoder(batch.pixels))
            return {"direct": mask_loss(direct, coarse, self.bench.weights)}
        has_region = torch.as_tensor(rng.random(phase.batch) < 0.6)
        region = simulate_region(batch, rng)
        with mixed_precision():
            logits, iou, direct = self._segmenter(batch.pixels, region, has_region)
        return {
            "mask": mask_loss(logits, batch.masks, self.bench.weights),
            "direct": mask_loss(direct, coarse, self.bench.weights),
            "iou": self.bench.weights.iou * iou_loss(iou, logits, batch.masks),
        }

    def validate(self, phase: Phase) -> dict[str, float]:
        """Dice per data set on fixed images, without a region prompt, at `phase.side`."""

        def predict(batch: ImageBatch) -> Tensor:
            count = batch.pixels.shape[0]
            nowhere = torch.zeros(count, dtype=torch.bool)
            logits: Tensor = self._segmenter(batch.pixels, torch.zeros_like(batch.cells), nowhere)[0]
            return logits

        return dice_by_dataset(self.bench.validation, predict, self.bench.frame_side, phase.side)


def dice_by_dataset(
    samples: list[Sample], predict: Callable[[ImageBatch], Tensor], frame_side: int, side: int
) -> dict[str, float]:
    """Mean Dice per data set of `predict`'s logits > 0, in the frame; for watching a run only."""
    scores: dict[str, list[float]] = {}
    for start in range(0, len(samples), 16):
        part = samples[start : start + 16]
        batch = collate(part, frame_side, side)
        with torch.no_grad(), mixed_precision():
            masks = (predict(batch) > 0).float()
        overlap = 2 * (masks * batch.masks).flatten(1).sum(1)
        total = (masks + batch.masks).flatten(1).sum(1).clamp(min=1)
        for sample, score in zip(part, (overlap / total).tolist(), strict=True):
            scores.setdefault(sample.record.dataset, []).append(score)
    return {name: float(np.mean(values)) for name, values in scores.items()}


class Learner(nn.Module):
    """Sim4Seg with what only training needs: a label head on the tower, scale and offset of the map."""

    def __init__(self, config: Sim4SegConfig) -> None:
        super().__init__()
        self.model = Sim4Seg(config)
        self.label_head = nn.Linear(config.tower.width, len(DIAGNOSES))
        self.map_offset = nn.Parameter(torch.tensor(-2.0))

    def read(self, pixels: Tensor, text: TextBatch) -> tuple[Tensor, Tensor]:
        """Teacher-forced states (B, 258 + T, C) and the tower's tokens (B, 256, W)."""
        tokens, prefix = self.model.embed_image(pixels)
        sequence = torch.cat([prefix, self.model.embed_text(text.ids).to(prefix.dtype)], dim=1)
        states, _ = self.model.language_model(sequence)
        return states, tokens

    def align(self, states: Tensor, text: TextBatch) -> tuple[Tensor, Tensor, Tensor]:
        """phi of the image (B, 256, 256), E_seg (B, 256), and their map as logits (B, 16, 16)."""
        image_tokens = self.model.image_tokens(states)
        at = self.model.image_stop + text.seg_index
        seg = self.model.phi(states[torch.arange(len(at)), at])
        dots = (image_tokens.float() * seg.float()[:, None]).sum(-1) / 16
        return (
            image_tokens,
            seg,
            dots.unflatten(-1, (self.model.config.grid, self.model.config.grid)) + self.map_offset,
        )

    def label_logits(self, tokens: Tensor, batch: ImageBatch) -> Tensor:
        """Diagnosis logits (B, labels) from the tower's tokens, pooled mostly over the region."""
        shares = ((batch.cells + 0.05) * batch.valid_cells).flatten(1)
        shares = shares / shares.sum(1, keepdim=True)
        out: Tensor = self.label_head((tokens * shares[..., None]).sum(1))
        return out


class LvlmStage:
    """Stage B: stands in for the LISA initialisation; text, and where the text points."""

    def __init__(self, bench: Bench, config: Sim4SegConfig = SMALL) -> None:
        self.learner = channels_last(Learner(config))
        self.module: nn.Module = self.learner
        self.bench = bench

    def begin(self, settings: dict[str, Any], start: Sequence[Path]) -> None:
        """Take the weights to start from, of earlier stages."""
        prepare_trunk(self.learner.model.vision_tower, settings)
        for path in start:
            start_from(self.learner, path)

    def losses(self, phase: Phase) -> Losses:
        """One batch: text, region and label losses."""
        samples = self.bench.sampler.draw(phase.batch)
        batch = collate(samples, self.bench.frame_side, phase.side)
        text = self._encode(samples, self.bench.sampler.rng, self.bench.weights.diagnosis_token)
        with mixed_precision():
            return self._read_losses(samples, batch, text)[0]

    def _encode(self, samples: list[Sample], rng: Generator, label_weight: float) -> TextBatch:
        return encode_batch(samples, self.bench.tokenizer, rng, label_weight, self.bench.seg_place)

    def _read_losses(
        self, samples: list[Sample], batch: ImageBatch, text: TextBatch
    ) -> tuple[Losses, Tensor, Tensor]:
        """The losses of reading, phi of the image (B, 256, 256) and E_seg (B, 256)."""
        states, tokens = self.learner.read(batch.pixels, text)
        image_tokens, seg, similarity = self.learner.align(states, text)
        answer = states[:, self.learner.model.image_stop : -1]
        logits = self.learner.model.language_model.lm_head(answer)
        labels = self.learner.label_logits(tokens, batch)
        has = text.has_seg
        weights = self.bench.weights
        losses = {
            "text": weights.text * text_loss(logits, text.ids[:, 1:], text.weights),
            "region": weights.region * region_loss(similarity[has], batch.cells[has], batch.valid_cells[has]),
            "label": weights.label * label_loss(labels, samples),
        }
        return losses, image_tokens, seg

    def validate(self, phase: Phase) -> dict[str, float]:
        """Teacher-forced: recall per diagnosis, token accuracy, share of region cells among the top 36."""
        rng = np.random.default_rng(0)
        hits: dict[str, list[float]] = {}
        for start in range(0, len(self.bench.validation), 12):
            part = self.bench.validation[start : start + 12]
            batch = collate(part, self.bench.frame_side, phase.side)
            text = self._encode(part, rng, 100.0)
            with torch.no_grad(), mixed_precision():
                self._score(part, batch, text, hits)
        return {name: float(np.mean(values)) for name, values in hits.items()}

    def _score(
        self, part: list[Sample], batch: ImageBatch, text: TextBatch, hits: dict[str, list[float]]
    ) -> None:
        states, _ = self.learner.read(batch.pixels, text)
        _, _, similarity = self.learner.align(states, text)
        logits = self.learner.model.language_model.lm_head(states[:, self.learner.model.image_stop : -1])
        correct = logits.argmax(-1) == text.ids[:, 1:]
        region = top_cells(similarity, batch.valid_cells, self.learner.model.config.top_k)
        covered = (region * batch.cells).flatten(1).sum(1) / batch.cells.flatten(1).sum(1).clamp(min=1e-6)
        for i, sample in enumerate(part):
            asked = text.weights[i] > 0
            hits.setdefault("tokens", []).append(float(correct[i][asked].float().mean()))
            if (text.weights[i] > 50).any():
                is_right = bool(correct[i][text.weights[i] > 50].all())
                hits.setdefault(f"recall {sample.record.diagnosis}", []).append(float(is_right))
            if text.has_seg[i]:
                hits.setdefault(f"covered {sample.record.dataset}", []).append(float(covered[i]))


def start_from(learner: Learner, path: Path) -> None:
    """Take over the weights of an earlier stage: a segmenter's SAM parts, or a learner's LVLM parts.

    Raises
    ------
    CheckpointError
        If the file holds neither.
    """
    tensors, _ = load_tensors(path)
    is_segmenter = any(name.startswith("image_encoder.") for name in tensors)
    parts: tuple[str, ...] = SAM_PARTS if is_segmenter else LVLM_PARTS
    if not is_segmenter and any(name.startswith("model.image_encoder.") for name in tensors):
        parts = LVLM_PARTS + SAM_PARTS
    for part in parts:
        found = with_prefix(tensors, f"{part}." if is_segmenter else f"model.{part}.")
        load_into(getattr(learner.model, part), found)
    if "map_offset" in tensors:  # a restored package has not what only training needs: that begins anew
        load_into(learner.label_head, with_prefix(tensors, "label_head."))
        learner.map_offset.data.copy_(tensors["map_offset"])


def label_loss(logits: Tensor, samples: list[Sample]) -> Tensor:
    """Cross-entropy of label logits (B, labels), over the samples that have a diagnosis."""
    known = [(i, DIAGNOSES.index(s.record.diagnosis)) for i, s in enumerate(samples) if s.record.diagnosis]
    if not known:
        return logits.sum() * 0.0
    rows, labels = zip(*known, strict=True)
    return F.cross_entropy(logits[list(rows)].float(), torch.tensor(labels))


def kind_indices(samples: list[Sample]) -> Tensor:
    """(B,) int64: which of `prompts.TARGETS`'s modalities each sample is, in that order."""
    return torch.tensor([MODALITIES.index(KINDS[sample.record.dataset].modality) for sample in samples])


def is_outlined(sample: Sample) -> bool:
    """Whether the sample says where its target is, if only by an empty mask; dermoscopy has no masks."""
    return bool(sample.mask.any()) or sample.record.diagnosis == "no fracture"


def keep_trunks(module: nn.Module, stages: int) -> None:
    """Leave the first stages of every small trunk as they are (`LiteTrunk.keep`)."""
    for part in module.modules():
        if isinstance(part, LiteTrunk):
            part.keep(stages)


def fix_batch_norms(module: nn.Module) -> None:
    """A model that goes on from a trained one keeps its batch norms' statistics: our batches are small."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


class JointStage(LvlmStage):
    """Stage C: the paper's recipe; the region comes from the model itself, without gradients.

    The paper freezes SAM's image encoder; `freeze_image_encoder` in the recipe says whether this run does.
    `freeze_lvlm` leaves everything else as it is: the masks learn on, the words stay.
    """

    def __init__(self, bench: Bench, config: Sim4SegConfig = SMALL) -> None:
        super().__init__(bench, config)
        self.learner.model.prompt_encoder.requires_grad_(False)
        self.is_lvlm_frozen = False

    def begin(self, settings: dict[str, Any], start: Sequence[Path]) -> None:
        """Take the weights to start from, and the recipe's word on SAM's image encoder."""
        super().begin(settings, start)
        encoder = self.learner.model.image_encoder
        if settings["freeze_image_encoder"]:
            encoder.requires_grad_(False)
        else:
            prepare_trunk(encoder, settings)
        self.is_lvlm_frozen = settings.get("freeze_lvlm", False)
        if self.is_lvlm_frozen:
            for name, parameter in self.learner.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name.startswith(MASK_PARTS))

    def losses(self, phase: Phase) -> Losses:
        """One batch: everything stage B has, plus the mask through RVLS2M and the decoder."""
        samples = self.bench.sampler.draw(phase.batch, only_regions=self.is_lvlm_frozen)
        batch = collate(samples, self.bench.frame_side, phase.side)
        text = self._encode(samples, self.bench.sampler.rng, self.bench.weights.diagnosis_token)
        model, has = self.learner.model, text.has_seg
        model.image_encoder.train(any(p.requires_grad for p in model.image_encoder.parameters()))
        if self.is_lvlm_frozen:
            fix_batch_norms(self.learner)
        with mixed_precision():
            with torch.set_grad_enabled(not self.is_lvlm_frozen):
                losses, image_tokens, seg = self._read_losses(samples, batch, text)
            if not has.any():
                return losses
            embedding = model.image_encoder(batch.pixels[has])
            _, region = model.locate(image_tokens[has].float(), seg[has].float(), batch.valid_cells[has])
            logits, iou = model.draw(embedding, seg[has], region)
        losses["mask"] = mask_loss(logits, batch.masks[has], self.bench.weights)
        losses["iou"] = self.bench.weights.iou * iou_loss(iou, logits, batch.masks[has])
        return losses

    def validate(self, phase: Phase) -> dict[str, float]:
        """What stage B scores, and Dice per data set with teacher-forced text."""
        scores = super().validate(phase)
        outlined = [sample for sample in self.bench.validation if sample.mask.any()]
        rng = np.random.default_rng(0)
        model = self.learner.model
        by_batch = iter(
            [outlined[start : start + 16] for start in range(0, len(outlined), 16)]
        )  # as dice_by_dataset cuts them

        def predict(batch: ImageBatch) -> Tensor:
            text = self._encode(next(by_batch), rng, 1.0)
            image_tokens, seg, _ = self.learner.align(self.learner.read(batch.pixels, text)[0], text)
            _, region = model.locate(image_tokens.float(), seg.float(), batch.valid_cells)
            return model.draw(model.image_encoder(batch.pixels), seg, region)[0]

        dice = dice_by_dataset(outlined, predict, self.bench.frame_side, phase.side)
        return scores | {f"dice {name}": value for name, value in dice.items()}
