"""The floor of the data sheet: its counts, and the cards."""

from __future__ import annotations

import time

import numpy as np
import pytest
from mindspore import Tensor

from benchmarks.inputs import Work
from benchmarks.machine import core_peak
from benchmarks.roofline import Operator, count_operators, find_floor, find_peaks, floor_seconds
from mindtwins.layers import kernels
from mindtwins.models.complexity import count


@pytest.mark.parametrize("name", ["svt_small", "svt_large", "pcpvt_base"])
@pytest.mark.parametrize("size", [224, 512])
def test_roofline_counts_the_products_of_the_summary(name: str, size: int):
    """Two counts written independently: by operator here, by stage there."""
    products = sum(part.layer_products + part.attention_products for part in count(name, size))
    assert sum(operator.products for operator in count_operators(name, size, 3)) == 3 * products


def test_roofline_reads_every_weight_once():
    """What a batch of 2 moves more than a batch of 1 are activations alone."""
    one, two = (
        sum(operator.values for operator in count_operators("svt_small", 224, batch))
        for batch in (1, 2)
    )
    assert 2 * one - two == sum(part.parameters for part in count("svt_small", 224))


@pytest.mark.parametrize(
    ("card", "memory"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
    ],
)
def test_peaks_by_the_name_of_the_card(card: str, memory: float):
    assert find_peaks(card).memory == memory
    assert find_peaks("NVIDIA GH200 480GB") is None


def test_the_slower_of_arithmetic_and_memory_is_the_floor():
    peaks = find_peaks("NVIDIA H200")
    arithmetic, memory = Operator(67 * 10**12, 1), Operator(1, 12 * 10**11)
    assert floor_seconds([arithmetic], peaks, "fp32") == pytest.approx(2.0)
    assert floor_seconds([memory], peaks, "fp32") == pytest.approx(1.0)
    assert floor_seconds([memory, arithmetic], peaks, "fp32") == pytest.approx(3.0)
    assert floor_seconds([memory], peaks, "fp16") == pytest.approx(0.5)


def test_only_a_classifiers_inference_on_a_known_card_has_a_floor():
    work = Work("GPU", "fp16", "svt_small", "inference", 224, 64)
    assert find_floor(work, "NVIDIA H200") > 0
    assert find_floor(work, "another") is None
    for other in ({"what": "training"}, {"model": "fpn_svt_small"}):
        assert find_floor(work._replace(**other), "NVIDIA H200") is None


@pytest.mark.skipif(not kernels.available(), reason=kernels.status())
def test_no_product_is_faster_than_the_peak_of_the_cores():
    """The peak was once measured in memory instead of in registers, at a fifth of what it is."""
    rows, depth, columns = 784, 512, 1024
    x, weight, bias = (
        Tensor(np.ones(shape, np.float32))
        for shape in ((rows, depth), (columns, depth), (columns,))
    )
    kernels.dense(x, weight, bias).asnumpy()
    seconds = []
    for _ in range(10):
        start = time.process_time()
        kernels.dense(x, weight, bias).asnumpy()
        seconds.append(time.process_time() - start)
    rate = 2 * rows * depth * columns / min(seconds)
    assert 0.1 * core_peak() < rate < 1.1 * core_peak()
