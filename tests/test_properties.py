"""What must hold for any input: clustering, memory and batches, with drawn cases."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clustering.labels import cluster

always_the_same = settings(derandomize=True, database=None, deadline=None, max_examples=60)
seeds = st.integers(0, 2 ** 32 - 1)


def groups(seed, people, each, spread):
    """Unit vectors around random centres: (people * each, 16) float32."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(people, 16)).repeat(each, 0) + spread * rng.normal(size=(people * each, 16))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def same_partition(a, b):
    """Whether two labellings say the same, up to the clusters' numbers; -1 is -1."""
    pairs = set(zip(a.tolist(), b.tolist()))
    return ((a < 0) == (b < 0)).all() and len({p[0] for p in pairs}) == len({p[1] for p in pairs}) == len(pairs)


@always_the_same
@given(seeds, st.integers(2, 6), st.integers(2, 8), st.floats(0.05, 0.8), st.integers(2, 12), st.integers(1, 4),
       st.sampled_from([0.4137, 0.6137, 0.8137]))
def test_permutation_permutes_the_clusters(seed, people, each, spread, k1, k2, eps):
    """With min_samples 2 no point lies on a border, where DBSCAN goes by order.

    Means of k2 encodings give distances such as exactly 0.4, where rounding decides; eps avoids those.
    """
    features = groups(seed, people, each, spread)
    order = np.random.default_rng(seed + 1).permutation(len(features))
    labels = cluster(features, k1, k2, eps, 2)
    assert same_partition(labels[order], cluster(features[order], k1, k2, eps, 2))


@always_the_same
@given(seeds, st.integers(2, 6), st.integers(2, 8), st.floats(0.05, 0.8), st.integers(2, 4),
       st.sampled_from([0.4, 0.6]))
def test_duplicated_points_share_a_cluster(seed, people, each, spread, copies, eps):
    features = groups(seed, people, each, spread)
    labels = cluster(np.concatenate([features] * copies), 4 * copies, 1, eps, 2).reshape(copies, -1)
    assert (labels >= 0).all() and (labels == labels[0]).all()


@always_the_same
@given(seeds, st.integers(1, 40), st.integers(1, 60), st.floats(0, 1), st.integers(1, 5))
def test_labels_count_from_zero_without_gaps(seed, people, k1, eps, min_samples):
    labels = cluster(groups(seed, people, 3, 0.4), k1, 3, eps, min_samples)
    assert labels.dtype == np.int64 and len(labels) == 3 * people
    assert set(labels[labels >= 0].tolist()) == set(range(labels.max() + 1))
