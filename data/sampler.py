"""Draw the batches of an epoch: P clusters, K images of each."""
import numpy as np


def iterations_per_epoch(labelled_rgb, labelled_ir, batch_size):
    """Return floor(max(n_rgb, n_ir) / B) + 1, n counted without outliers."""
    return max(labelled_rgb, labelled_ir) // batch_size + 1


def cluster_batches(labels, clusters, instances, iterations, rng):
    """Draw the positions of the images of each batch.

    Per batch, P clusters are drawn without replacement (with replacement where fewer exist), and K images of
    each with replacement; outliers are never drawn.

    Args: labels: (N,) int, -1 is an outlier; clusters: P; instances: K; rng: numpy Generator.
    Returns: (iterations, P * K) int64; the images of a cluster lie side by side.
    Raises: ValueError: all images are outliers.
    """
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    if len(order) == 0:
        raise ValueError("all images are outliers")
    _, start, size = np.unique(labels[order], return_index=True, return_counts=True)
    if len(start) >= clusters:
        chosen = np.argsort(rng.random((iterations, len(start))), axis=1)[:, :clusters]
    else:
        chosen = rng.integers(0, len(start), (iterations, clusters))
    offset = (rng.random((iterations, clusters, instances)) * size[chosen][..., None]).astype(np.int64)
    return order[start[chosen][..., None] + offset].reshape(iterations, -1)
