"""What runs on a GPU gives the plain classes' numbers; shown on the CPU, in float32 and in bfloat16."""

import copy

import pytest
import torch

from inference.export.gpu_timing import Captured
from inference.export.originals import TINY_VIT, fill
from inference.models.lvlm import LanguageConfig, LanguageModel
from inference.models.lvlm_gpu import StaticDecoder
from inference.models.sam import VitImageEncoder
from inference.models.sam_gpu import encoder_for_gpu

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # which is for GPUs
@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@torch.no_grad()
def test_flex_attention_is_the_decomposed_bias(dtype: torch.dtype, distance: float) -> None:
    plain = VitImageEncoder(TINY_VIT).eval()
    fill(plain, 2)
    pixels = torch.randn(2, 3, 256, 256)
    want = plain(pixels)
    ours = encoder_for_gpu(copy.deepcopy(plain), CPU, dtype)
    got = ours(pixels)
    assert got.dtype == torch.float32
    assert {each.dtype for each in ours.blocks.parameters()} == {dtype}
    assert (got - want).abs().max() <= distance * want.abs().max()


@pytest.mark.parametrize("kv_heads", [0, 2])
@torch.no_grad()
def test_static_steps_are_the_full_pass(kv_heads: int) -> None:
    """Three paths that say different things behind one prefix; room is left over in the cache."""
    config = LanguageConfig(50, width=32, depth=2, heads=4, mlp_width=48, kv_heads=kv_heads)
    model = LanguageModel(config).eval()
    fill(model, 4)
    before, said = torch.randint(0, 50, (1, 7)), torch.randint(0, 50, (3, 5))
    _, kept = model(model.embed_tokens(before))
    decoder = StaticDecoder(model)
    decoder.begin(kept, paths=3, longest=9)
    whole = model(model.embed_tokens(torch.cat([before.expand(3, -1), said], 1)))[0][:, 7:]
    for i in range(5):
        logits, states = decoder(said[:, i : i + 1])
        torch.testing.assert_close(states, whole[:, i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, model.lm_head(whole[:, i]), rtol=1e-4, atol=1e-5)
    assert decoder.position.item() == 5


def test_a_captured_call_reads_what_its_inputs_hold_now() -> None:
    held = torch.ones(3)
    call = Captured(lambda x: 2 * x, (held,), is_compiled=True)
    held.fill_(4)
    assert call().tolist() == [8, 8, 8]
