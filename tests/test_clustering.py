"""Clustering against a dense one written row by row, at sizes and settings drawn at random and at their edges."""
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from benchmarks import reference
from utils import clustering
from utils.clustering import check_index, cluster, jaccard_distances, k_nearest
from utils.errors import UserError


def features(n, groups, noise=0.6, dim=24, seed=0):
    """(N, dim) unit rows around a few centroids."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, dim))[rng.integers(0, groups, n)] + noise * rng.standard_normal((n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def dense(x, k1, k2):
    """The dense reference distance, with neighbours found by sorting all products."""
    nearest = np.argsort(-(x @ x.T), axis=1, kind="stable")[:, :k1]
    return reference.jaccard_distance(x, k1, k2, nearest)


def as_dense(distances):
    """A CSR matrix with 1 wherever it stores nothing."""
    distances = distances.tocoo()
    full = np.ones(distances.shape, np.float32)
    full[distances.row, distances.col] = distances.data
    return full


def draw_case(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 300))
    return features(n, int(rng.integers(1, 12)), rng.uniform(0.2, 1.5), seed=seed), int(rng.integers(1, 36)), int(
        rng.integers(1, 9)), float(rng.uniform(0.2, 0.9))


@pytest.mark.parametrize("seed", range(24))
def test_random_sizes_and_settings(seed):
    x, k1, k2, eps = draw_case(seed)
    expected = dense(x, k1, k2)
    np.testing.assert_allclose(as_dense(jaccard_distances(torch.from_numpy(x), k1, k2, 1.0)), expected, atol=2e-5)
    near = jaccard_distances(torch.from_numpy(x), k1, k2, eps)
    clear = np.abs(expected - eps) > 1e-4
    assert ((as_dense(near) <= eps) == (expected <= eps))[clear].all()
    np.testing.assert_array_equal(near.toarray(), near.T.toarray())


@pytest.mark.parametrize("k1", [1, 2, 3, 7, 8, 30])
@pytest.mark.parametrize("k2", [1, 6])
def test_fewer_images_than_neighbours_and_odd_k1(k1, k2):
    for n in (1, 2, 5, 8):
        x = features(n, 2, seed=n)
        np.testing.assert_allclose(as_dense(jaccard_distances(torch.from_numpy(x), k1, k2, 1.0)), dense(x, k1, k2),
                                   atol=2e-5)


def test_no_image_and_one_image():
    assert cluster(np.empty((0, 8), np.float32), 30, 6, 0.6, 4).shape == (0,)
    assert cluster(features(1, 1), 30, 6, 0.6, 1).tolist() == [0]
    assert cluster(features(1, 1), 30, 6, 0.6, 4).tolist() == [-1]


def test_eps_0_joins_only_equal_encodings_and_eps_1_joins_what_shares_a_neighbour():
    x = np.repeat(features(6, 6, seed=3), 5, axis=0)           # six images, five times each
    np.testing.assert_array_equal(cluster(x, 5, 1, 1e-6, 4), np.repeat(np.arange(6), 5))
    apart = features(40, 40, seed=1)
    assert (cluster(apart, 6, 1, 0.0, 4) == -1).all()
    assert cluster(features(40, 1, 0.1), 30, 6, 1.0, 4).max() == 0


@pytest.mark.parametrize("copies", [2, 12])
def test_duplicates_stay_together_and_rows_sum_to_one(copies):
    x = torch.from_numpy(np.repeat(features(20, 20, seed=5), copies, axis=0))
    encoding = clustering.reciprocal_encoding(x, k_nearest(x, 10), 10)
    total = torch.zeros(len(x)).index_add_(0, encoding.row, encoding.value)
    torch.testing.assert_close(total, torch.ones(len(x)))
    distances = jaccard_distances(x, 10, 6, 1.0)
    assert np.isfinite(distances.data).all() and distances.data.min() >= 0 and distances.diagonal().max() == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_images_does_not_matter(seed):
    x = features(200, 8, seed=seed)
    order = np.random.default_rng(seed).permutation(len(x))
    labels, permuted = cluster(x, 12, 4, 0.55, 4), cluster(x[order], 12, 4, 0.55, 4)
    inlier = labels >= 0
    assert labels.max() >= 1
    np.testing.assert_array_equal(inlier[order], permuted >= 0)
    pairs = set(zip(labels[order][permuted >= 0].tolist(), permuted[permuted >= 0].tolist()))
    assert len(pairs) == labels.max() + 1 == permuted.max() + 1


def test_blocks_do_not_change_the_result(monkeypatch):
    x = torch.from_numpy(features(150, 6))
    expected = as_dense(jaccard_distances(x, 15, 6, 0.7))
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 7)
    monkeypatch.setattr(clustering, "PIECE_ELEMENTS", 64)
    np.testing.assert_allclose(as_dense(jaccard_distances(x, 15, 6, 0.7)), expected, atol=2e-6)


def test_torch_search_equals_the_faiss_search(monkeypatch):
    x = torch.from_numpy(features(3000, 60, dim=64))
    assert clustering.faiss is not None, "FAISS is in requirements.txt but not installed"
    expected = k_nearest(x, 30)
    monkeypatch.setattr(clustering, "faiss", None)
    found = k_nearest(x, 30)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-5)
    assert (found.index == expected.index).float().mean() > 0.999    # rounding may swap two that are as near


def assert_complete(neighbours, x, k):
    """k different rows of each row, itself among them, nearest first, with their true products."""
    own = torch.arange(len(x))[:, None]
    assert neighbours.index.shape == (len(x), min(k, len(x)))
    assert (neighbours.index >= 0).all() and (neighbours.index == own).any(1).all()
    assert (neighbours.index.sort(1).values.diff(dim=1) > 0).all()
    torch.testing.assert_close(neighbours.similarity, (x @ x.T).gather(1, neighbours.index), atol=1e-5, rtol=0)
    assert (neighbours.similarity.diff(dim=1) < 1e-5).all()


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_search_finds_nearly_the_exact_neighbours_and_labels(index):
    x = features(1500, 30, noise=0.9, dim=32)
    exact, found = k_nearest(torch.from_numpy(x), 20), k_nearest(torch.from_numpy(x), 20, index)
    assert_complete(found, torch.from_numpy(x), 20)
    assert (found.index[:, :, None] == exact.index[:, None]).any(2).float().mean() > 0.9
    labels, expected = (cluster(x, 20, 6, 0.6, 4, index=name) for name in (index, "exact"))
    assert expected.max() > 10 and adjusted_rand_score(labels, expected) > 0.95
    np.testing.assert_array_equal(cluster(x, 20, 6, 0.6, 4, index), labels)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
@pytest.mark.parametrize("n", [1, 2, 5, 16, 40])
def test_approximate_search_of_few_images(index, n):
    x = features(n, 2, seed=n)
    assert_complete(k_nearest(torch.from_numpy(x), 30, index), torch.from_numpy(x), 30)
    np.testing.assert_array_equal(cluster(x, 30, 6, 0.6, 2, index), cluster(x, 30, 6, 0.6, 2))


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_search_of_duplicates(index):
    image = np.repeat(np.arange(30), 40)                       # more copies than neighbours
    x = features(30, 30, seed=5)[image]
    assert_complete(k_nearest(torch.from_numpy(x), 12, index), torch.from_numpy(x), 12)
    labels = cluster(x, 12, 1, 0.6, 4, index)
    assert len(set(zip(labels[labels >= 0], image[labels >= 0]))) == labels.max() + 1
    few = x[::8]                                               # five copies of each
    np.testing.assert_array_equal(cluster(few, 5, 1, 1e-6, 4, index), np.repeat(np.arange(30), 5))
    zeros = torch.zeros(50, 8)
    assert_complete(k_nearest(zeros, 10, index), zeros, 10)


def test_what_an_approximate_search_leaves_out_is_searched_exactly(monkeypatch):
    x = torch.from_numpy(features(50, 4))
    expected = k_nearest(x, 6)
    found = clustering.Neighbours(expected.index.clone(), expected.similarity.clone())
    found.index[3, 4:], found.index[7] = -1, found.index[8]
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 1)
    found = clustering._with_themselves(x, found)
    np.testing.assert_array_equal(found.index, expected.index)
    torch.testing.assert_close(found.similarity, expected.similarity)


def test_approximate_search_needs_faiss(monkeypatch):
    monkeypatch.setattr(clustering, "faiss", None)
    check_index("exact")
    with pytest.raises(UserError, match="CLUSTER.INDEX is hnsw, which needs FAISS.*set CLUSTER.INDEX to exact"):
        cluster(features(9, 2), 3, 1, 0.5, 2, "hnsw")


def test_errors():
    with pytest.raises(ValueError, match="expected exact, ivf or hnsw"):
        cluster(features(9, 2), 3, 1, 0.5, 2, "flat")
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        cluster(np.zeros(3, np.float32), 2, 1, 0.5, 1)
    with pytest.raises(ValueError, match="NaN or Inf"):
        cluster(np.full((3, 2), np.nan, np.float32), 2, 1, 0.5, 1)


def test_autocast_does_not_reach_the_search():
    x = torch.from_numpy(features(300, 10))
    expected = jaccard_distances(x, 12, 4, 0.6)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(jaccard_distances(x, 12, 4, 0.6).toarray(), expected.toarray())
