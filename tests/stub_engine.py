"""A predictor without weights for tests in this process, and a package of it that others can open."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inference.contract import Image, Prediction, Prompt
from inference.runtime.stub_predictor import darkest_part

MANIFEST = """
[model]
name = "{name}"
version = "0.0.1"
family = "stub"
licence = "none: for tests"
[input]
side = 256
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
[region]
grid = 16
top_k = 1
[text]
max_query_tokens = 48
max_new_tokens = 1
answer_cue = ""
[labels]
diagnoses = ["benign"]
[files]
"README.md" = "{digest}"
"""


@dataclass
class StubPredictor:
    """Says `diagnosis` about everything; a flat image has nothing to outline. `asked` keeps the queries."""

    name: str = "stub"
    version: str = "0.0.1"
    digest: str = "5b" * 32
    diagnosis: str | None = "benign"
    modality: str = "breast ultrasound image"
    asked: list[str] = field(default_factory=list)

    def predict(self, image: Image, prompt: Prompt) -> Prediction:
        """The darkest quarter of the grey range, if there is a range."""
        self.asked.append(prompt.query)
        return darkest_part(image, self.diagnosis, self.modality)

    def segment(self, images: Sequence[Image], prompt: Prompt, like: Prediction | None) -> list[Prediction]:
        """Each image for itself; whole answers even with `like`, since they cost nothing here."""
        del like
        return [self.predict(image, prompt) for image in images]


def write_stub_package(repository: Path, name: str = "sim4seg-s") -> Path:
    """A package of the family `stub` under the name that the rules ask for; gives the repository.

    It opens with `inference.test_mode = true` only. Its questions: inference.runtime.stub_predictor.MISDEEDS.
    """
    folder = repository / name
    folder.mkdir(parents=True)
    content = b"A stub for tests. Its results mean nothing.\n"
    (folder / "README.md").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "model.toml").write_text(MANIFEST.format(name=name, digest=digest), encoding="utf-8")
    return repository
