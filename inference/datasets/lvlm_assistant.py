"""An LVLM of transformers as Medical and Critical Assistant, from a folder on disk; nothing is fetched.

The prompts are ours, after what is known of M3DS's (models.md 1.6): the writer is told the confirmed
diagnosis and asked to go step by step; the critic answers ACCEPT, or REJECT with a reason.
"""

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from inference.datasets.assistants import Task, Verdict

MEDICAL = (
    "You are a medical assistant. Question: {question} The confirmed diagnosis is: {diagnosis}. "
    "Write your reasoning in steps. Firstly, name the imaging modality. Secondly, describe what is visible. "
    "Thirdly, relate it to the conditions that come into question. Finally, conclude with the diagnosis. "
    "Use only what the image shows.{objections}"
)
OBJECTIONS = " An earlier attempt was rejected: {reasons}. Avoid that."
CRITIC = (
    "You are a strict medical reviewer. Question: {question} The confirmed diagnosis is: {diagnosis}. "
    "Reasoning: {chain} Judge whether (1) modality, findings, inference and conclusion are all there, "
    "(2) each step follows from the one before, (3) nothing contradicts the image, the diagnosis or medical "
    "knowledge. Answer ACCEPT, or REJECT: and the reason."
)


class LvlmAssistant:
    """Writes and judges with one model, greedily, so that a run can be repeated."""

    def __init__(self, folder: Path, max_new_tokens: int = 256) -> None:
        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).eval()
        self._max_new_tokens = max_new_tokens

    def write(self, task: Task, objections: tuple[str, ...]) -> str:
        """A chain in the model's own words."""
        told = OBJECTIONS.format(reasons="; ".join(objections)) if objections else ""
        return self._say(
            task, MEDICAL.format(question=task.question, diagnosis=task.diagnosis or "none", objections=told)
        )

    def judge(self, task: Task, chain: str) -> Verdict:
        """The model's verdict; what is neither ACCEPT nor REJECT rejects, and says so."""
        said = self._say(
            task, CRITIC.format(question=task.question, diagnosis=task.diagnosis or "none", chain=chain)
        )
        return read_verdict(said)

    def _say(self, task: Task, text: str) -> str:
        prompt = f"USER: {self._processor.image_token}\n{text} ASSISTANT:"
        inputs = self._processor(images=Image.fromarray(task.pixels), text=prompt, return_tensors="pt")
        with torch.no_grad():
            ids = self._model.generate(**inputs, max_new_tokens=self._max_new_tokens, do_sample=False)
        answer = ids[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.decode(answer, skip_special_tokens=True)).strip()


def read_verdict(said: str) -> Verdict:
    """ACCEPT, or REJECT: reason; anything else is no acceptance."""
    head, _, reason = said.strip().partition(":")
    if head.strip().upper().startswith("ACCEPT"):
        return Verdict(True)
    if head.strip().upper().startswith("REJECT"):
        return Verdict(False, reason.strip() or "no reason was given")
    return Verdict(False, "the critic gave no verdict")
