"""Metrics against the field's loop over queries, and cases whose answer is known."""
import numpy as np
import pytest

from processor import metrics
from processor.metrics import rank_metrics


def naive(distance, query_ids, gallery_ids, query_cams, gallery_cams, protocol):
    """The usual evaluation code, one query at a time: of each that has a match (CMC, first match, AP, INP)."""
    numbers = []
    for q, row in enumerate(distance):
        order = np.argsort(row, kind="stable")
        if protocol == "sysu":
            order = order[~((query_cams[q] == 3) & (gallery_cams[order] == 2))]
        elif protocol == "llcm":
            order = order[~((gallery_ids[order] == query_ids[q]) & (gallery_cams[order] == query_cams[q]))]
        match = gallery_ids[order] == query_ids[q]
        if not match.any():
            continue
        places = np.flatnonzero(match) + 1
        own = np.mean(np.arange(1, len(places) + 1) / places), len(places) / places[-1]
        if protocol != "regdb":
            _, first = np.unique(gallery_ids[order], return_index=True)
            match = match[np.sort(first)]
        first = np.argmax(match)
        numbers.append((np.arange(20) >= first, first + 1, *own))
    return [np.array(values) for values in zip(*numbers)]


@pytest.mark.parametrize("protocol", ["sysu", "regdb", "llcm"])
@pytest.mark.parametrize("seed", range(12))
def test_against_a_loop(protocol, seed, monkeypatch):
    """Ties, both zeros, infinities, queries without a match, hidden images, and any number of blocks."""
    rng = np.random.default_rng(seed)
    queries, size, people = rng.integers(1, 80), rng.integers(20, 150), rng.integers(3, 40)
    query_ids, gallery_ids = rng.integers(0, people, queries), rng.integers(2, people + 2, size)
    query_ids[0] = gallery_ids[0]       # at least one match, of a camera that is shown
    query_cams, gallery_cams = rng.choice([3, 6], queries), np.r_[1, rng.choice([1, 2, 3, 6], size - 1)]
    levels = np.array([-np.inf, -1.5, -1, -0.1, -0.0, 0.0, 0.1, 0.3, 1, np.inf])
    distance = rng.choice(levels, (queries, size)) if seed % 2 else rng.normal(size=(queries, size)).round(seed)
    distance = distance.astype((np.float16, np.float32, np.float64)[seed % 3])
    monkeypatch.setattr(metrics, "QUERIES_AT_ONCE", int(rng.choice([1, 7, 256])))
    result = rank_metrics(distance, query_ids, gallery_ids, query_cams, gallery_cams, protocol)
    expected = naive(distance, query_ids, gallery_ids, query_cams, gallery_cams, protocol)
    assert (expected[0][:, result.found.shape[1]:] == 1).all() and result.scored == len(expected[0])
    for found, values in zip(result[1:], (expected[0][:, :result.found.shape[1]], *expected[1:])):
        np.testing.assert_allclose(found, values, atol=1e-12)
    np.testing.assert_allclose((result.mAP, result.mINP), [values.mean() for values in expected[2:]])
    np.testing.assert_array_equal(result.cmc, result.found.mean(axis=0))


@pytest.mark.parametrize("arguments, message", [
    ((np.zeros((2, 2)), [0, 1], [2, 3]), "no query has a match"),
    ((np.zeros((0, 2)), [], [0, 1]), "no query has a match"),
    ((np.zeros((2, 0)), [0, 1], []), "no query has a match"),
    ((np.zeros((2, 3)), [0, 1], [0, 1]), "shape"),
    ((np.full((2, 2), np.nan), [0, 1], [0, 1]), "NaN"),
    ((np.zeros((2, 2)), [0, 1], [0, 1], None, [1, 1], "sysu"), "needs query_cams"),
    ((np.zeros((2, 2)), [0, 1], [0, 1], [1, 1], [1, 1], "market"), "choose sysu, regdb or llcm")])
def test_what_cannot_be_ranked_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank_metrics(*arguments, *[None, None, "regdb"][len(arguments) - 3:])
