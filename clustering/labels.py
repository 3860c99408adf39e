"""Pseudo labels of features: DBSCAN on their k-reciprocal Jaccard distance."""
import numpy as np
import torch
from sklearn.cluster import DBSCAN

from clustering.jaccard import distances_of
from clustering.neighbours import neighbours_of
from utils.distributed import ALONE
from utils.errors import UserError

MANY_OUTLIERS = 0.9     # share of the images from which on a clustering is worth a warning


def cluster(features, k1, k2, eps, min_samples, processes=ALONE):
    """Cluster features by DBSCAN on their k-reciprocal Jaccard distance.

    Several processes share the search for neighbours; the first one does the rest, and all get its labels.

    As in the released code, an image without any k-reciprocal neighbour (one of more than k1 exact duplicates) may be
    far from itself too, and is then an outlier whatever min_samples is.

    Args:
        features: (N, D) float32 array or tensor; rows are L2-normalised here if they are not yet.
        k1: neighbours that count as near.
        k2: neighbours whose encodings are averaged (1: none are).
        eps: largest Jaccard distance of two neighbours, in [0, 1].
        min_samples: neighbours, itself included, that make a core point.
        processes: of `utils.distributed`, which all have the features.

    Returns:
        (N,) int64 array of labels from 0 on; -1 marks outliers.

    Raises:
        ValueError: features are not (N, D) or not finite.

    Example:
        >>> features = np.repeat(np.eye(3, dtype=np.float32), [4, 4, 1], axis=0)    # two people, and a stranger
        >>> cluster(features, k1=4, k2=1, eps=0.5, min_samples=3)
        array([ 0,  0,  0,  0,  1,  1,  1,  1, -1])
    """
    features = torch.as_tensor(features)
    if features.ndim != 2:
        raise ValueError(f"features have shape {tuple(features.shape)}; expected (N, D)")
    if len(features) == 0:
        return np.empty(0, np.int64)
    if not torch.isfinite(features).all():
        raise ValueError("features hold NaN or Inf; clustering needs finite values")
    found = [neighbours_of(features, k1, processes)]      # in a list that gives them away: DBSCAN needs the memory
    return processes.once(lambda: dbscan(distances_of(*found.pop(), k1, k2, eps), eps, min_samples))


def dbscan(distances, eps, min_samples):
    """Label the rows of a sparse matrix (N, N) of distances: (N,) int64, -1 is an outlier."""
    labels = np.full(distances.shape[0], -1, dtype=np.int64)
    near_itself = np.flatnonzero(np.diff(distances.indptr))
    if len(near_itself) < len(labels):      # DBSCAN would put the missing diagonal of the other rows in as 0
        distances = distances[near_itself][:, near_itself]
    if len(near_itself):
        labels[near_itself] = DBSCAN(eps=max(eps, 1e-12), min_samples=min_samples,
                                     metric="precomputed").fit_predict(distances)
    return labels


def make_pseudo_labels(features, modality, settings, processes=ALONE):
    """Cluster the features of all training images of a modality.

    Args: features: (N, D); modality: `Modality`, for the message; settings: has k1, k2, eps and min_samples;
        processes: as `cluster`.
    Returns: (N,) int64 labels, -1 is an outlier.
    Raises: UserError: every image is an outlier.
    """
    labels = cluster(features, **vars(settings), processes=processes)
    if (labels < 0).all():
        raise UserError(f"all {len(labels)} {modality.value} images are outliers: no {settings.min_samples} of them "
                        f"lie within CLUSTER.EPS {settings.eps} of one another. Raise CLUSTER.EPS, lower "
                        "CLUSTER.MIN_SAMPLES, or bring CLUSTER.K1 near the images per person and modality, and start "
                        "over with --fresh")
    return labels


def collapse_warnings(labels):
    """Return sentences on clusterings (Modality -> (N,) labels, not all -1) from which little can be learned."""
    warnings = []
    for m, array in labels.items():
        outliers = float((array < 0).mean())
        if array.max() == 0:
            warnings.append(f"warning: all clustered {m.value} images are in one cluster, so there is nothing to tell "
                            "apart; try a smaller CLUSTER.EPS, a smaller CLUSTER.K1, or a lower OPTIM.LR, with --fresh")
        if outliers > MANY_OUTLIERS:
            warnings.append(f"warning: {outliers:.0%} of the {m.value} images are outliers and train nothing; "
                            "try a larger CLUSTER.EPS, a smaller CLUSTER.MIN_SAMPLES, CLUSTER.K1 near the images per "
                            "person and modality, or a lower OPTIM.LR, with --fresh")
    return warnings
