"""Draw the batches of an epoch: P clusters, K images of each."""
import numpy as np


def iterations_per_epoch(labelled_rgb, labelled_ir, batch_size):
    """Return floor(max(n_rgb, n_ir) / B) + 1, n counted without outliers."""
    return max(labelled_rgb, labelled_ir) // batch_size + 1


def cluster_batches(labels, clusters, instances, iterations, rng, cameras=None):
    """Draw the positions of the images of each batch.

    Per batch, P clusters are drawn without replacement (with replacement where fewer exist), and K images of
    each with replacement; outliers are never drawn.

    Args: labels: (N,) int, -1 is an outlier; clusters: P; instances: K; rng: numpy Generator; cameras: (N,) int, with
        which the images of a cluster are drawn by `across_cameras`.
    Returns: (iterations, P * K) int64; the images of a cluster lie side by side.
    """
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    _, start, size = np.unique(labels[order], return_index=True, return_counts=True)
    if len(start) >= clusters:
        chosen = np.argsort(rng.random((iterations, len(start))), axis=1)[:, :clusters]
    else:
        chosen = rng.integers(0, len(start), (iterations, clusters))
    if cameras is not None:
        images = np.split(order, start[1:])
        return np.array([[across_cameras(images[c], cameras, instances, rng) for c in row]
                         for row in chosen]).reshape(iterations, -1)
    offset = (rng.random((iterations, clusters, instances)) * size[chosen][..., None]).astype(np.int64)
    return order[start[chosen][..., None] + offset].reshape(iterations, -1)


def across_cameras(images, cameras, instances, rng):
    """Draw K images of a cluster as Cluster Contrast does: any one, the others from other cameras than its own.

    Where they are fewer than K they are drawn with replacement; a cluster of one camera gives its other images.

    Args: images: (n,) positions; cameras: (N,); instances: K; rng: numpy Generator. Returns: list of K positions.
    """
    first = rng.choice(images)
    others = images[cameras[images] != cameras[first]]
    if len(others) == 0:
        others = images[images != first] if len(images) > 1 else images
    return [first, *rng.choice(others, instances - 1, replace=len(others) < instances)]
