"""Clustering against a dense one written row by row, at sizes and settings drawn at random and at their edges."""
import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from clustering import jaccard, neighbours
from clustering.jaccard import distances_of
from clustering.labels import ClusterSettings, cluster, make_pseudo_labels
from clustering.neighbours import k_nearest, neighbours_of
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


def released_distance(x, initial_rank, k1, k2):
    """The dense distance (N, N) of the released code (Zhong et al. 2017); initial_rank: (N, k1) neighbours."""
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
        V[i, expansion] = torch.softmax(-dist, dim=1)
    if k2 != 1:
        V = np.stack([V[initial_rank[i, :k2]].mean(0) for i in range(n)])
    minima = np.stack([np.minimum(V[i], V).sum(1) for i in range(n)])
    return np.maximum(1 - minima / (2 - minima), 0)


def ranks(x, k1):
    """The neighbours (N, k1) that `cluster` finds: ties fall alike here and there."""
    return k_nearest(torch.nn.functional.normalize(torch.from_numpy(x), dim=1), k1).index.numpy()


def jaccard_distances(x, k1, k2, eps):
    return distances_of(*neighbours_of(torch.as_tensor(x), k1), k1, k2, eps)


def as_dense(distances):
    """A CSR matrix with 1 wherever it stores nothing."""
    distances = distances.tocoo()
    full = np.ones(distances.shape, np.float32)
    full[distances.row, distances.col] = distances.data
    return full


def draw_case(seed):
    """Every third one of fewer images than neighbours."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300 if seed % 3 else 9))
    return features(n, int(rng.integers(1, 12)), rng.uniform(0.2, 1.5), seed=seed), int(rng.integers(1, 36)), int(
        rng.integers(1, 9)), float(rng.uniform(0.2, 0.9))


@pytest.mark.parametrize("seed", range(9))
def test_random_sizes_and_settings(seed):
    """Distances, and labels: from 0 on without gaps, as DBSCAN's."""
    x, k1, k2, eps = draw_case(seed)
    expected = released_distance(x, ranks(x, k1), k1, k2)
    np.testing.assert_allclose(as_dense(jaccard_distances(x, k1, k2, 1.0)), expected, atol=2e-5)
    near = jaccard_distances(x, k1, k2, eps)
    assert np.abs(expected - eps).min() > 1e-6
    assert ((as_dense(near) <= eps) == (expected <= eps)).all()
    np.testing.assert_array_equal(near.toarray(), near.T.toarray())
    labels = DBSCAN(eps=eps, min_samples=2, metric="precomputed").fit_predict(expected)
    np.testing.assert_array_equal(cluster(x, k1, k2, eps, 2), labels)


def test_edges():
    """No image, one image; eps 0 joins equal encodings alone, eps 1 whatever shares a neighbour."""
    assert cluster(np.empty((0, 8), np.float32), 30, 6, 0.6, 4).shape == (0,)
    assert [cluster(features(1, 1), 30, 6, 0.6, least).tolist() for least in (1, 4)] == [[0], [-1]]
    x = np.repeat(features(6, 6, seed=3), 5, axis=0)           # six images, five times each
    np.testing.assert_array_equal(cluster(x, 5, 1, 1e-6, 4), np.repeat(np.arange(6), 5))
    assert (cluster(features(40, 40, seed=1), 6, 1, 0.0, 4) == -1).all()
    assert cluster(features(40, 1, 0.1), 30, 6, 1.0, 4).max() == 0


def with_copies(seed):
    """Images of which some have many exact duplicates, a k1 that they exceed, and neighbours with ties drawn by lot."""
    rng = np.random.default_rng(seed)
    x = features(60, 12, 0.8, seed=seed)
    image = rng.permutation(np.repeat(np.arange(len(x)), rng.choice([1, 1, 1, 2, 5, 9, 20], len(x))))
    k1, similarity = int(rng.integers(3, 9)), (x @ x.T)[image][:, image]
    nearest = np.lexsort((rng.random(similarity.shape), -similarity))[:, :k1]
    return x[image], k1, neighbours.Neighbours(*map(torch.from_numpy, (
        nearest, np.take_along_axis(similarity, nearest, 1))))


@pytest.mark.parametrize("seed, k2", [(0, 1), (1, 6), (2, 1)])
def test_more_duplicates_than_k1_are_as_in_the_released_code(seed, k2, monkeypatch):
    x, k1, drawn = with_copies(seed)
    if seed % 3:
        monkeypatch.setattr(neighbours, "k_nearest", lambda *_: drawn)
        nearest = drawn.index.numpy()
    else:
        nearest = ranks(x, k1)
    expected = released_distance(x, nearest, k1, k2)
    assert sum(len(k_reciprocal_neigh(nearest, i, k1)) == 0 for i in range(len(x))) > 10
    assert (expected.diagonal() > 0.3).any() or seed % 3 == 0
    np.testing.assert_allclose(as_dense(jaccard_distances(x, k1, k2, 1.0)), expected, atol=2e-5)
    for eps, min_samples in ((0.3, 1), (0.6, 4), (0.9, 1)):
        assert np.abs(expected - eps).min() > 1e-6
        labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(expected)
        np.testing.assert_array_equal(cluster(x, k1, k2, eps, min_samples), labels)
        assert (labels[expected.diagonal() > eps] == -1).all()


def test_images_that_are_all_far_from_themselves_are_outliers(monkeypatch):
    nobody = neighbours.Neighbours(torch.tensor([[1], [2], [3], [0]]), torch.ones(4, 1))
    monkeypatch.setattr(neighbours, "k_nearest", lambda *_: nobody)
    assert cluster(np.ones((4, 3), np.float32), 1, 1, 0.6, 1).tolist() == [-1] * 4


def test_blocks_do_not_change_the_result(monkeypatch):
    x = torch.from_numpy(features(60, 6))
    expected = as_dense(jaccard_distances(x, 15, 6, 0.7))
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 7)
    for elements in (1, 64):
        monkeypatch.setattr(jaccard, "PIECE_ELEMENTS", {"cpu": elements})
        np.testing.assert_allclose(as_dense(jaccard_distances(x, 15, 6, 0.7)), expected, atol=2e-6)


def test_errors():
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        cluster(np.zeros(3, np.float32), 2, 1, 0.5, 1)
    with pytest.raises(ValueError, match="NaN or Inf"):
        cluster(np.full((3, 2), np.nan, np.float32), 2, 1, 0.5, 1)


def test_autocast_does_not_reach_the_search():
    x = torch.from_numpy(features(300, 10))
    expected = jaccard_distances(x, 12, 4, 0.6)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(jaccard_distances(x, 12, 4, 0.6).toarray(), expected.toarray())


def test_a_clustering_of_outliers_alone_is_refused():
    with pytest.raises(UserError, match="all 5 ir images are outliers: no 4 of them lie within CLUSTER.EPS 0.1"):
        make_pseudo_labels(torch.eye(5), Modality.IR, ClusterSettings(2, 1, 0.1, 4))
