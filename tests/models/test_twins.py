"""Behavior of the model cells beyond parity: modes, stochastic depth, the mask."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import mindtwins
import mindtwins.errors
from mindtwins import layers
from mindtwins.execution import set_precision
from mindtwins.layers import kernels
from mindtwins.models import twins
from mindtwins.models.twins import padding_mask


def images(batch: int = 2, side: int = 64) -> Tensor:
    values = np.random.default_rng(0).standard_normal((batch, 3, side, side))
    return Tensor(values.astype(np.float32))


@pytest.mark.slow
def test_graph_and_pynative_give_the_same_numbers():
    model = mindtwins.create_model("svt_tiny", num_classes=10)
    in_graph = model(images()).asnumpy()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    np.testing.assert_allclose(model(images()).asnumpy(), in_graph, atol=1e-6 * in_graph.std())


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_fp16_runs_in_pynative_mode_too(level):
    """MindSpore would give the kernels fp16 there, which they refuse."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model = mindtwins.create_model("svt_tiny", num_classes=10)
    expected = model(images()).asnumpy()
    gradients = ms.grad(model, None, model.trainable_params())
    expected_gradients = [gradient.asnumpy() for gradient in gradients(images())]
    set_precision(model, level)
    found = model(images()).asnumpy()
    # Whatever the kernels compute is float32 in this mode.
    assert np.abs(found - expected).max() < 0.01 * expected.std()
    for gradient, exact in zip(gradients(images()), expected_gradients, strict=True):
        assert gradient.dtype == ms.float32
        assert np.abs(gradient.asnumpy() - exact).max() < 0.05 * np.abs(exact).max() + 1e-6


@pytest.mark.slow
def test_images_of_fp16_are_computed_with_in_float32():
    model = mindtwins.create_model("svt_tiny", num_classes=10)
    rounded = Tensor(images().asnumpy().astype(np.float16))
    expected = model(Tensor(rounded.asnumpy().astype(np.float32))).asnumpy()
    np.testing.assert_array_equal(model(rounded).asnumpy(), expected)


def test_drop_path_rates_grow_linearly_over_the_blocks():
    model = mindtwins.create_model("svt_tiny", drop_path_rate=0.5)
    expected = [rate for rate in (0, 0.1, 0.2, 0.3, 0.4, 0.5) for _ in ("attention", "mlp")]
    np.testing.assert_allclose(model.drop_path_rates, expected)


def test_keep_factors_scale_each_branch_per_sample():
    """A sample with all branches at 1 is undisturbed by one whose branches are all dropped."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model = mindtwins.create_model("svt_tiny", num_classes=10)
    plain = model(images()).asnumpy()
    drop_path_mask = np.ones((12, 2), np.float32)
    np.testing.assert_allclose(model(images(), Tensor(drop_path_mask)).asnumpy(), plain, atol=1e-6)
    drop_path_mask[:, 1] = 0
    dropped = model(images(), Tensor(drop_path_mask)).asnumpy()
    np.testing.assert_allclose(dropped[0], plain[0], atol=1e-6)
    assert np.abs(dropped[1] - plain[1]).max() > 0.01

    for _, cell in model.cells_and_names():  # zero branches: what dropping them must equal
        if hasattr(cell, "proj") and hasattr(cell, "heads"):
            cell.proj.weight.set_data(Tensor(np.zeros(cell.proj.weight.shape, np.float32)))
        if hasattr(cell, "fc2"):
            cell.fc2.weight.set_data(Tensor(np.zeros(cell.fc2.weight.shape, np.float32)))
    np.testing.assert_allclose(model(images()).asnumpy()[1], dropped[1], atol=1e-6)


@pytest.mark.slow
def test_branches_are_drawn_only_in_training_and_only_with_a_rate():
    model = mindtwins.create_model("svt_tiny", num_classes=10, drop_path_rate=0.5)
    evaluated = [model(images()).asnumpy() for _ in range(2)]
    np.testing.assert_array_equal(*evaluated)
    model.set_train()
    trained = [model(images()).asnumpy() for _ in range(2)]
    assert np.abs(trained[0] - trained[1]).max() > 0

    without = mindtwins.create_model("svt_tiny", num_classes=10).set_train()
    np.testing.assert_array_equal(without(images()).asnumpy(), without(images()).asnumpy())


def test_maps_have_to_fill_windows_that_are_not_padded():
    model = mindtwins.create_model("svt_tiny", num_classes=10, window_padding="none")
    message = "a 12 x 12 map is no multiple of the 7 x 7 window"
    with pytest.raises(mindtwins.errors.UserError, match=message):
        model(Tensor(np.zeros((1, 3, 48, 48), np.float32)))
    mindtwins.create_model("pcpvt_small", window_padding="none").check_size(48, 48)  # no windows
    model.check_size(224, 448)


def test_images_are_tensors():
    model = mindtwins.create_model("svt_tiny", num_classes=10)
    with pytest.raises(TypeError, match=r"images must be a mindspore\.Tensor, not ndarray"):
        model(np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize(("bottom", "right"), [(0, 3), (2, 0)])
def test_mask_is_empty_where_one_axis_needs_no_padding(bottom, right):
    assert not padding_mask(14, 14, bottom, right).any()


def test_mask_separates_real_from_padded_tokens():
    mask = padding_mask(7, 14, 2, 3)
    assert mask.shape == (1, 2, 1, 49, 49)
    # Second window: rows 5, 6 and columns 4, 5, 6 are padding.
    padded = np.zeros((7, 7), bool)
    padded[5:] = True
    padded[:, 4:] = True
    for query in range(49):
        for key in range(49):
            expected = -1000 if padded.flat[query] != padded.flat[key] else 0
            assert mask[0, 1, 0, query, key] == expected


@pytest.mark.slow
@pytest.mark.skipif(not kernels.available(), reason=kernels.status())
@pytest.mark.parametrize(
    ("stage", "index", "branch", "first", "last", "channels"),
    [
        (0, 0, "mlp", "fc1", "fc2", (128, 32)),
        (0, 0, "attn", "qkv", "proj", (32, 32)),
        (1, 1, "attn", "sr", "kv", (64, 128)),
    ],
)
def test_a_branch_is_one_operation_only_where_that_computes_the_same(
    stage, index, branch, first, last, channels
):
    def joined(change=lambda block, cells: None) -> bool:
        model = mindtwins.create_model("svt_tiny").set_train(False)
        block = model.blocks[stage][index]
        change(block, getattr(block, branch))
        return block.joins_mlp if branch == "mlp" else block.joins_attention

    class OwnDense(layers.Dense):
        pass

    class OwnBranch(nn.Cell):
        pass

    def hook(cell):
        cell.register_forward_hook(lambda *_: None)

    assert joined()
    # To learn from, attention stays several: its gradient would compute much of it again.
    assert joined(lambda block, cells: block.set_train()) == (branch == "mlp")
    assert not joined(lambda block, cells: set_precision(block, "O1"))
    assert not joined(lambda block, cells: set_precision(block, "O2"))
    assert not joined(lambda block, cells: setattr(cells, last, OwnDense(*channels)))
    assert not joined(lambda block, cells: setattr(block, branch, OwnBranch()))
    assert not joined(lambda block, cells: hook(getattr(cells, first)))
    assert not joined(lambda block, cells: hook(cells))
    assert not joined(lambda block, cells: cells.register_backward_hook(lambda *_: None))
    with layers.use_formulation("matmul"):
        assert not joined()


@pytest.mark.slow
@pytest.mark.skipif(not kernels.available(), reason=kernels.status())
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_a_joined_branch_drops_what_the_mask_says_of_each_image(mode):
    """The kernels once took the first image's factor for all."""
    ms.set_context(mode=mode)
    rng = np.random.default_rng(0)
    model = mindtwins.create_model("svt_tiny").set_train()
    images = Tensor(rng.standard_normal((3, 3, 64, 64), dtype=np.float32))
    blocks = sum(len(stage) for stage in model.blocks)
    mask = Tensor(rng.choice([0.0, 1.25, 2.0], (2 * blocks, 3)), ms.float32)
    weights = model.trainable_params()

    def results() -> list[np.ndarray]:
        def total(images, mask):
            return (model(images, mask) ** 2).sum()

        value, gradients = ms.value_and_grad(total, None, weights)(images, mask)
        return [value.asnumpy(), *(gradient.asnumpy() for gradient in gradients)]

    joined = results()
    with layers.use_formulation("matmul"):
        model = mindtwins.create_model("svt_tiny").set_train()
        ms.load_param_into_net(model, {weight.name: weight for weight in weights})
        weights = model.trainable_params()
        plain = results()
    for one, two in zip(joined, plain, strict=True):
        assert np.linalg.norm(one - two) <= 1e-4 * np.linalg.norm(two)


def test_no_kernel_stands_for_a_class_of_another_definition(monkeypatch):
    """Even where it goes by the name of the one that the kernel computes."""

    class Doubled(layers.Dense):
        def construct(self, x):
            return 2 * super().construct(x)

    monkeypatch.setattr(twins, "Dense", Doubled)
    block = mindtwins.create_model("svt_tiny").set_train(False).blocks[1][1]
    assert isinstance(block.attn.proj, Doubled) and isinstance(block.mlp.fc2, Doubled)
    assert not block.joins_attention and not block.joins_mlp
