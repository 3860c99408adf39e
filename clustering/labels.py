"""Pseudo labels of an epoch: features of all images to clusters."""
from dataclasses import dataclass

from clustering.clustering import cluster
from utils.distributed import ALONE
from utils.errors import UserError

MANY_OUTLIERS = 0.9


@dataclass(frozen=True)
class ClusterSettings:
    """Parameters of `clustering.clustering.cluster`."""

    k1: int
    k2: int
    eps: float
    min_samples: int


def make_pseudo_labels(features, modality, settings, processes=ALONE):
    """Cluster the features (N, D) of all training images of a modality: (N,) int64 labels, -1 is an outlier.

    Args: processes: of `utils.distributed`. Raises: UserError: every image is an outlier.
    """
    labels = cluster(features, settings.k1, settings.k2, settings.eps, settings.min_samples,
                     processes=processes)
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
        clusters, outliers = int(array.max()) + 1, float((array < 0).mean())
        if clusters == 1:
            warnings.append(f"warning: all clustered {m.value} images are in one cluster, so there is nothing to tell "
                            "apart; try a smaller CLUSTER.EPS, a smaller CLUSTER.K1, or a lower OPTIM.LR, with --fresh")
        if outliers > MANY_OUTLIERS:
            warnings.append(f"warning: {outliers:.0%} of the {m.value} images are outliers and train nothing; "
                            "try a larger CLUSTER.EPS, a smaller CLUSTER.MIN_SAMPLES, CLUSTER.K1 near the images per "
                            "person and modality, or a lower OPTIM.LR, with --fresh")
    return warnings
