"""EnginePlan: how graphs are run - execution provider, threads, optimised before or not - what to try."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]


class EnginePlan(BaseModel):
    """One way to run the graphs of a package; what it does not say, the settings do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    provider: Provider = "CPUExecutionProvider"
    threads: int = Field(0, ge=0, le=1024)  # 0: as the settings say
    is_spinning: bool = False  # idle threads wait busily: quicker to wake, and a core is never idle
    is_saved: bool = False  # the graph that ONNX Runtime optimised before is loaded, instead of optimising
    is_graph_captured: bool = False  # CUDA graph: one launch for all kernels; needs shapes that never vary

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)


PLAIN = EnginePlan(name="plain")


def candidates(available: Sequence[str], cores: int) -> list[EnginePlan]:
    """What can be tried where ONNX Runtime offers `available`; the plain engine is first."""
    plans = [PLAIN, EnginePlan(name="saved", is_saved=True)]
    if cores > 1:
        plans += [
            EnginePlan(name="saved, one thread", is_saved=True, threads=1),
            EnginePlan(name="saved, spinning", is_saved=True, is_spinning=True),
        ]
    if CUDA in available:
        plans += [
            EnginePlan(name="cuda", provider=CUDA),
            EnginePlan(name="cuda, graph captured", provider=CUDA, is_graph_captured=True),
        ]
    if TENSORRT in available:
        plans.append(EnginePlan(name="tensorrt", provider=TENSORRT))
    return plans
