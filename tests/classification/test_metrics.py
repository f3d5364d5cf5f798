"""Metrics, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from mindtwins.classification.metrics import ImageScores
from mindtwins.errors import UserError


def scores_of(logits: np.ndarray, labels: np.ndarray, batch: int, order=None) -> ImageScores:
    scores = ImageScores(len(labels))
    order = np.arange(len(labels)) if order is None else order
    for start in range(0, len(labels), batch):
        index = order[start : start + batch]
        scores.add(index, logits[index], labels[index])
    return scores


def test_against_scikit_learn_and_torch():
    rng = np.random.default_rng(0)
    logits = (5 * rng.normal(size=(503, 10))).astype(np.float32)
    labels = rng.integers(0, 10, 503).astype(np.int32)
    metrics = scores_of(logits, labels, 64).metrics()
    assert metrics.images == 503
    for k, value in ((1, metrics.top1), (5, metrics.top5)):
        assert value == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=k), rel=1e-12)
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(labels).long()
    )
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-12)


def test_batches_and_order_change_nothing_to_the_last_digit():
    rng = np.random.default_rng(0)
    logits = (5 * rng.normal(size=(101, 7))).astype(np.float32)
    labels = rng.integers(0, 7, 101).astype(np.int32)
    expected = scores_of(logits, labels, 101).metrics()
    assert scores_of(logits, labels, 13, rng.permutation(101)).metrics() == expected


def test_fewer_classes_than_five():
    logits = np.array([[3, 2, 1], [3, 2, 1]], np.float32)
    metrics = scores_of(logits, np.array([2, 0], np.int32), 2).metrics()
    assert (metrics.top1, metrics.top5) == (50, 100)


def test_ties_go_to_the_lower_class_and_nan_is_never_right():
    logits = np.array([[1, 1, 0], [1, 1, 0], [np.nan] * 3], np.float32)
    metrics = scores_of(logits, np.array([0, 1, 0], np.int32), 3).metrics()
    assert metrics.top1 == pytest.approx(100 / 3)


def test_images_not_seen_do_not_count():
    scores = ImageScores(4)
    with pytest.raises(ValueError, match="no image"):
        scores.metrics()
    scores.add(np.array([2]), np.array([[0.0, 1.0]]), np.array([1]))
    assert scores.metrics().images == 1 and scores.metrics().top1 == 100


def test_scores_shared_over_processes_equal_those_of_one():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(37, 10)).astype(np.float32)
    labels = rng.integers(0, 10, 37)
    alone = ImageScores(37)
    alone.add(np.arange(37), logits, labels)
    shares = []
    for rank in range(3):
        share = ImageScores(37)
        index = np.arange(rank, 37, 3)
        share.add(index, logits[index], labels[index])
        shares.append(share)
    sent = [share.to_bytes() for share in shares]
    for share in shares:
        for data in sent:
            share.add_bytes(data)
        assert share.metrics() == alone.metrics()
        np.testing.assert_array_equal(share.loss, alone.loss)


def test_process_without_images_shares_nothing():
    scores = ImageScores(2)
    scores.add_bytes(ImageScores(2).to_bytes())
    assert (scores.label_rank == -1).all()


def test_nothing_evaluated_is_told_in_a_sentence():
    with pytest.raises(UserError, match="no image was evaluated: none of them could be read"):
        ImageScores(3).metrics()
