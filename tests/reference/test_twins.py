"""The reference itself: against timm where it is installed, and its weights."""

import pytest
import torch

from mindtwins.reference import create_reference
from mindtwins.reference.weights import amplify, randomize

PARAMETERS = {"pcpvt_small": 24_106_216, "svt_small": 24_060_776}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    assert sum(p.numel() for p in create_reference(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("size", [(224, 224), (224, 192), (96, 160)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_timm_gives_the_same_logits(name, size):
    timm = pytest.importorskip("timm", reason="timm needs torchvision, which has no CPU wheel")
    reference = randomize(create_reference(name))
    other = timm.create_model(f"twins_{name}", img_size=size).eval()
    other.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(reference(images), other(images), atol=5e-6, rtol=0)


def test_randomized_weights_are_nowhere_trivial():
    for name, parameter in randomize(create_reference("svt_tiny")).named_parameters():
        assert parameter.std() > 0.01, name
        assert not ((parameter == 0) | (parameter == 1)).any(), name


def test_amplified_weights_bring_the_variance_down_to_epsilon():
    reference = amplify(randomize(create_reference("svt_tiny")))
    variances = []
    for embed in reference.patch_embeds:
        embed.proj.register_forward_hook(
            lambda m, i, out: variances.append(out.var(1).mean().item())
        )
    reference(torch.randn(1, 3, 64, 64))
    assert len(variances) == 4
    assert all(1e-7 < variance < 1e-4 for variance in variances)
