"""Metrics against the field's loop over queries, and cases whose answer is known."""
import numpy as np
import pytest

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
@pytest.mark.parametrize("seed", range(4))
def test_against_a_loop(protocol, seed):
    rng = np.random.default_rng(seed)
    query_ids, gallery_ids = rng.integers(0, 30, 80), rng.integers(3, 33, 150)     # some queries have no match
    query_cams, gallery_cams = rng.choice([3, 6], 80), rng.choice([1, 2, 3, 6], 150)
    distance = rng.random((80, 150)).round(2)                                      # with ties
    result = rank_metrics(distance, query_ids, gallery_ids, query_cams, gallery_cams, protocol)
    cmc, mean_ap, minp = naive(distance, query_ids, gallery_ids, query_cams, gallery_cams, protocol)
    np.testing.assert_allclose(result.cmc, cmc[:len(result.cmc)], atol=1e-12)
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
])
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank_metrics(*arguments, protocol="regdb")
