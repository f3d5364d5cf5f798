import pytest

from mindtwins.conversion.recognize import recognize
from mindtwins.models.variants import VARIANTS, parameter_shapes


@pytest.mark.parametrize("variant", VARIANTS)
def test_recognizes_every_variant(variant):
    found = recognize(parameter_shapes(variant, num_classes=7, in_channels=4))
    assert (found.variant, found.exact) == (variant, True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_missing_tensor_has_no_say(variant):
    shapes = parameter_shapes(variant)
    for name in ("patch_embeds.1.proj.weight", "blocks.0.0.norm1.gamma", "head.weight"):
        rest = {other: shape for other, shape in shapes.items() if other != name}
        assert recognize(rest).variant == variant


def test_says_what_was_seen_if_nothing_fits():
    shapes = parameter_shapes("pcpvt_base")
    deeper = shapes | {"blocks.2.18.norm1.gamma": (320,)}
    found = recognize(deeper)
    assert (found.variant, found.exact) == ("pcpvt_base", False)
    assert "attention: global," in found.seen
    assert "channels of stage 2: 320" in found.seen
    assert "blocks of stage 2: 19" in found.seen
