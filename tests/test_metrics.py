"""Metrics against the field's loop over queries, and cases whose answer is known."""
import numpy as np
import pytest

from utils import metrics
from utils.metrics import rank_metrics


def naive(distance, query_ids, gallery_ids, query_cams, gallery_cams, protocol):
    """The usual evaluation code, one query at a time."""
    cmcs, average_precisions, inverse_penalties = [], [], []
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
        average_precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
        inverse_penalties.append(len(places) / places[-1])
        if protocol != "regdb":
            _, first = np.unique(gallery_ids[order], return_index=True)
            match = match[np.sort(first)]
        cmc = np.zeros(20)
        cmc[np.argmax(match):] = 1
        cmcs.append(cmc)
    return np.mean(cmcs, axis=0), np.mean(average_precisions), np.mean(inverse_penalties)


@pytest.mark.parametrize("protocol", ["sysu", "regdb", "llcm"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("seed", range(12))
def test_against_a_loop(protocol, kind, seed, monkeypatch):
    """Ties, both zeros, infinities, queries without a match, hidden images, and any number of blocks."""
    rng = np.random.default_rng(seed)
    queries, size, people = rng.integers(1, 80), rng.integers(20, 150), rng.integers(3, 40)
    query_ids, gallery_ids = rng.integers(0, people, queries), rng.integers(2, people + 2, size)
    query_ids[0] = gallery_ids[0]                                      # at least one match, of a camera that is shown
    query_cams, gallery_cams = rng.choice([3, 6], queries), np.r_[1, rng.choice([1, 2, 3, 6], size - 1)]
    levels = np.array([-np.inf, -1.5, -1, -0.1, -0.0, 0.0, 0.1, 0.3, 1, np.inf])
    distance = rng.choice(levels, (queries, size)) if seed % 2 else rng.normal(size=(queries, size)).round(seed)
    distance = distance.astype(kind)
    monkeypatch.setattr(metrics, "CACHED", int(rng.choice([1, 400, 2 ** 16])))
    result = rank_metrics(distance, query_ids, gallery_ids, query_cams, gallery_cams, protocol)
    cmc, mean_ap, minp = naive(distance, query_ids, gallery_ids, query_cams, gallery_cams, protocol)
    np.testing.assert_allclose(result.cmc, cmc[:len(result.cmc)], atol=1e-12)
    assert (cmc[len(result.cmc):] == 1).all()
    assert result.mAP == pytest.approx(mean_ap, abs=1e-12) and result.mINP == pytest.approx(minp, abs=1e-12)


def test_perfect_and_worst_ranking():
    ids = np.arange(5)
    best = rank_metrics(1 - np.eye(5), ids, ids, protocol="regdb")
    assert best.cmc[0] == best.mAP == best.mINP == 1
    worst = rank_metrics(np.eye(5), ids, ids, protocol="regdb")
    assert worst.cmc[3] == 0 and worst.cmc[4] == 1 and worst.mAP == worst.mINP == pytest.approx(1 / 5)


@pytest.mark.parametrize("arguments, message", [
    ((np.zeros((2, 2)), [0, 1], [2, 3]), "no query has a match"),
    ((np.zeros((2, 3)), [0, 1], [0, 1]), "shape"),
    ((np.full((2, 2), np.nan), [0, 1], [0, 1]), "NaN"),
    ((np.zeros((0, 2)), [], [0, 1]), "no query has a match"),
    ((np.zeros((2, 0)), [0, 1], []), "no query has a match"),
])
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank_metrics(*arguments, protocol="regdb")


@pytest.mark.parametrize("cameras, message", [((None, [1, 1]), "needs query_cams"), (([3, 3, 3], [1, 1]), "cameras")])
def test_cameras_are_checked(cameras, message):
    with pytest.raises(ValueError, match=message):
        rank_metrics(np.zeros((2, 2)), [0, 1], [0, 1], *cameras, "sysu")
