"""Attention and the transposes around it."""

import numpy as np
import torch
from mindspore import Tensor

from mindtwins import layers


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_attend_equals_torch():
    query, key, value = random(2, 3, 5, 8), random(2, 3, 7, 8)[::-1].copy(), random(2, 3, 7, 8)
    mask = np.where(random(5, 7) > 0, np.float32(-1000), np.float32(0))
    for bias in (None, mask):
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(torch.from_numpy(t).double() for t in (query, key, value)),
            attn_mask=None if bias is None else torch.from_numpy(bias).double(),
        )
        actual = layers.attend(
            Tensor(query), Tensor(key), Tensor(value), None if bias is None else Tensor(bias)
        )
        # A dozen float32 roundings of values up to 2, as in test_formulations.py.
        np.testing.assert_allclose(actual.asnumpy(), expected.numpy(), atol=3e-6)


def test_heads_vary_slower_than_their_channels():
    x = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
    split = layers.split_heads(Tensor(x), 2)
    assert split.shape == (2, 2, 12, 3)
    np.testing.assert_array_equal(split.asnumpy()[1, 1, 5], x[1, 1, 1, 3:])
    np.testing.assert_array_equal(layers.merge_heads(split, 3, 4).asnumpy(), x)


def test_windows():
    x = random(2, 14, 21, 6)
    windows = layers.partition_windows(Tensor(x), heads=2, window_size=7)
    assert windows.shape == (2, 6, 2, 49, 3)
    # Window 4 is in row 1, column 1; its token 8 in its row 1, column 1.
    np.testing.assert_array_equal(windows.asnumpy()[1, 4, 1, 8], x[1, 8, 8, 3:])
    np.testing.assert_array_equal(layers.merge_windows(windows, 14, 21, 7).asnumpy(), x)


def test_padding_and_cropping():
    x = random(2, 3, 4, 5)
    padded = layers.pad_bottom_right(Tensor(x), 2, 1).asnumpy()
    np.testing.assert_array_equal(padded, np.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0))))
    np.testing.assert_array_equal(layers.crop_top_left(Tensor(padded), 3, 4).asnumpy(), x)


def test_draw_keep():
    rates = np.array([[0.0], [0.5], [0.2]], np.float32)
    drop_path_mask = layers.draw_drop_path_mask(Tensor(rates), 20000).asnumpy()
    assert drop_path_mask.shape == (3, 20000)
    assert (drop_path_mask[0] == 1).all()
    np.testing.assert_allclose(np.unique(drop_path_mask[1]), [0, 2])
    np.testing.assert_allclose(np.unique(drop_path_mask[2]), [0, 1.25])
    np.testing.assert_allclose(drop_path_mask.mean(1), 1, atol=0.03)
