"""Clustering against a dense one written row by row, at sizes and settings drawn at random and at their edges."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from clustering import jaccard, neighbours
from clustering.jaccard import distances_of
from clustering.labels import cluster, make_pseudo_labels
from clustering.neighbours import neighbours_of
from utils.errors import UserError
from utils.modality import Modality


def features(n, groups, noise=0.6, dim=24, seed=0):
    """(N, dim) unit rows around a few centroids."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, dim))[rng.integers(0, groups, n)] + noise * rng.standard_normal((n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def k_reciprocal_neigh(initial_rank, i, k1):
    """As in ClusterContrast: the first k1 + 1 neighbours that have i among their own."""
    forward = initial_rank[i, :k1 + 1]
    return forward[np.where(initial_rank[forward, :k1 + 1] == i)[0]]


def released_distance(x, initial_rank, k1, k2, unit=None):
    """The dense distance (N, N) of the released code (Zhong et al. 2017).

    Args: initial_rank: (N, k1) neighbours; unit: (N,) by which each row's distances are divided, for re-ranking.
    """
    n = len(x)
    nn_k1 = [k_reciprocal_neigh(initial_rank, i, k1) for i in range(n)]
    nn_k1_half = [k_reciprocal_neigh(initial_rank, i, int(np.around(k1 / 2))) for i in range(n)]
    V = np.zeros((n, n), np.float32)
    for i in range(n):
        expansion = nn_k1[i]
        for candidate in nn_k1[i]:
            half = nn_k1_half[candidate]
            if len(np.intersect1d(half, nn_k1[i])) > 2 / 3 * len(half):
                expansion = np.append(expansion, half)
        expansion = np.unique(expansion)
        dist = 2 - 2 * torch.from_numpy(x[i:i + 1] @ x[expansion].T)
        V[i, expansion] = torch.softmax(-dist if unit is None else -dist / unit[i], dim=1)
    if k2 != 1:
        V = np.stack([V[initial_rank[i, :k2]].mean(0) for i in range(n)])
    minima = np.stack([np.minimum(V[i], V).sum(1) for i in range(n)])
    return np.maximum(1 - minima / (2 - minima), 0)


def as_dense(distances):
    """A CSR matrix with 1 wherever it stores nothing."""
    distances = distances.tocoo()
    full = np.ones(distances.shape, np.float32)
    full[distances.row, distances.col] = distances.data
    return full


def compare(x, k1, k2, *cases):
    """Compare distances, and for pairs of eps and min_samples labels, with dense ones, which are returned.

    Both have the same neighbours: ties fall alike.
    """
    unit, near = neighbours_of(torch.from_numpy(x), k1)
    expected = released_distance(x, near.index.numpy(), k1, k2)
    np.testing.assert_allclose(as_dense(distances_of(unit, near, k1, k2, 1.0)), expected, atol=2e-5)
    for eps, min_samples in cases:
        assert np.abs(expected - eps).min() > 1e-6
        found = distances_of(unit, near, k1, k2, eps)
        np.testing.assert_array_equal(as_dense(found) <= eps, expected <= eps)
        np.testing.assert_array_equal(found.toarray(), found.T.toarray())
        labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(expected)
        np.testing.assert_array_equal(cluster(x, k1, k2, eps, min_samples), labels)
    return expected


@pytest.mark.parametrize("seed", range(9))
def test_random_sizes_and_settings(seed):
    """Every third one has fewer images than neighbours."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300 if seed % 3 else 9))
    x = features(n, int(rng.integers(1, 12)), rng.uniform(0.2, 1.5), seed=seed)
    k1, k2 = int(rng.integers(1, 36)), int(rng.integers(1, 9))
    compare(x, k1, k2, (float(rng.uniform(0.2, 0.9)), 2))


def test_edges():
    """No image, one image; eps 0 joins equal encodings alone, eps 1 whatever shares a neighbour."""
    assert cluster(np.empty((0, 8), np.float32), 30, 6, 0.6, 4).shape == (0,)
    assert [cluster(features(1, 1), 30, 6, 0.6, least).tolist() for least in (1, 4)] == [[0], [-1]]
    x = np.repeat(features(6, 6, seed=3), 5, axis=0)           # six images, five times each
    np.testing.assert_array_equal(cluster(x, 5, 1, 1e-6, 4), np.repeat(np.arange(6), 5))
    assert (cluster(features(40, 40, seed=1), 6, 1, 0.0, 4) == -1).all()
    assert cluster(features(40, 1, 0.1), 30, 6, 1.0, 4).max() == 0


@pytest.mark.parametrize("seed, k2", [(0, 1), (1, 6), (2, 1)])
def test_more_duplicates_than_k1_are_as_in_the_released_code(seed, k2, monkeypatch):
    """Such images may be far from themselves. Ties between neighbours are drawn by lot, but for the first seed."""
    rng = np.random.default_rng(seed)
    x = features(60, 12, 0.8, seed=seed)
    x = x[rng.permutation(np.repeat(np.arange(len(x)), rng.choice([1, 1, 1, 2, 5, 9, 20], len(x))))]
    k1, similarity = int(rng.integers(3, 9)), x @ x.T
    nearest = np.lexsort((rng.random(similarity.shape), -similarity))[:, :k1]
    drawn = neighbours.Neighbours(*map(torch.from_numpy, (nearest, np.take_along_axis(similarity, nearest, 1))))
    if seed:
        monkeypatch.setattr(neighbours, "k_nearest", lambda *_: drawn)
    far = compare(x, k1, k2, (0.3, 1), (0.6, 4), (0.9, 1)).diagonal() > 0.3
    assert far.any() or not seed


def test_images_that_are_all_far_from_themselves_are_outliers(monkeypatch):
    nobody = neighbours.Neighbours(torch.tensor([[1], [2], [3], [0]]), torch.ones(4, 1))
    monkeypatch.setattr(neighbours, "k_nearest", lambda *_: nobody)
    assert cluster(np.ones((4, 3), np.float32), 1, 1, 0.6, 1).tolist() == [-1] * 4


def test_blocks_do_not_change_the_result(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 7)
    for elements in (1, 64):
        monkeypatch.setattr(jaccard, "PIECE_ELEMENTS", {"cpu": elements})
        compare(features(60, 6), 15, 6, (0.7, 2))


def test_one_cluster_is_no_error():
    """What comes of it is said by `collapse_warnings`, and ends a run that stays there."""
    settings, x = SimpleNamespace(k1=3, k2=1, eps=0.5, min_samples=2), torch.eye(5)[[0, 0, 0, 0, 1]]
    assert set(make_pseudo_labels(x, Modality.IR, settings).tolist()) == {0, -1}


def test_errors():
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        cluster(np.zeros(3, np.float32), 2, 1, 0.5, 1)
    with pytest.raises(ValueError, match="NaN or Inf"):
        cluster(np.full((3, 2), np.nan, np.float32), 2, 1, 0.5, 1)
    with pytest.raises(UserError, match="all 5 ir images are outliers: no 4 of them lie within CLUSTER.EPS 0.1"):
        make_pseudo_labels(torch.eye(5), Modality.IR, SimpleNamespace(k1=2, k2=1, eps=0.1, min_samples=4))
