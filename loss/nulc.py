"""N-ULC: PGM's alternating loss with labels that are softened, and images that are weighted, by their neighbours.

Teng et al., "Relieving Universal Label Noise for Unsupervised Visible-Infrared Person Re-Identification by Inferring
from Neighbors" (arXiv, 2024); numbers and formulas are those of its released code (tengxiao14, af4b43c).
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from loss.cluster_memory import MOMENTUM, RENEWAL
from loss.links import nearest, progressive
from loss.pgm import CROSS_WEIGHT, Alternating
from utils.modality import Modality
from utils.runtime import to_device
from utils.settings import Range, Setting


class NULC(Alternating):
    """PGM with plain prototypes whose targets, from METHOD.CROSS_EPOCH on, are shares of all clusters.

    Shares and weights are those of the epoch's start, for an image's own modality and for the other one. Clusters are
    made of means over mirror images.
    """

    SETTINGS = (RENEWAL, MOMENTUM._replace(default=0.2), CROSS_WEIGHT._replace(default=3.0),
                Setting("BALANCE", 0.7, Range(0, 1), "share of the pseudo label in a target; the neighbours' clusters "
                        "have the rest"),
                Setting("NEIGHBOURS", 30, Range(1, whole=True), "nearest images, whose clusters soften labels"),
                Setting("SHARPNESS", 10.0, Range(0), "how fast an image's weight falls with the share that its "
                        "neighbours give to other clusters; with 0 all weigh 1"))
    mirrored = True
    rule = staticmethod(progressive)

    def start(self, start, epoch):
        """Begin an epoch as PGM does, and find the neighbours of all images where the modalities meet."""
        s, rows = self.settings, start.features["feature"]
        self.nearby = {(m, of): nearby_clusters(rows[m], rows[of], start.labels[of], s.neighbours)
                       for m in Modality for of in Modality} if epoch >= s.cross_epoch else {}
        return super().start(start, epoch)

    def visits_of(self, batch):
        """List the visits of PGM, with targets where the modalities meet."""
        visits = super().visits_of(batch)
        return [visit._replace(shares=self.targets(visit, batch)) for visit in visits] if self.nearby else visits

    def targets(self, visit, batch):
        """Compute the targets of a visit's images, times their weights: (B, K)."""
        s, nearby = self.settings, self.nearby[visit.batch, Modality(visit.memory)]
        shares, weights = nearby.soften(batch.positions[visit.batch], visit.labels, s.sharpness)
        shares *= 1 - s.balance
        own = to_device(np.maximum(visit.labels, 0), shares.device)[:, None]        # images without a label stay out
        return weights[:, None] * shares.scatter_add(1, own, torch.full_like(weights, s.balance)[:, None])


class NearbyClusters(NamedTuple):
    """The clusters of the images that are nearest to each image of a modality."""

    of_neighbours: torch.Tensor     # (N, k) int64, K for those without a cluster
    sizes: torch.Tensor             # (K,) float32, images in each cluster

    def soften(self, rows, labels, sharpness):
        """Share each image among the clusters of its neighbours, and weigh it by the share of its own cluster.

        With n of k neighbours in a cluster of size S the share is n / (k - n + S), the Jaccard index of neighbours and
        cluster, over the sum of all; the weight is exp(-sharpness (1 - share of the own cluster)^2). Where no neighbour
        has a cluster, which across the modalities is possible, that is 0 / 0; ours is then the label alone.

        Args: rows: (B,) images; labels: (B,) own cluster of each, -1 for none, whose weight is 0.
        Returns: (B, K) shares, (B,) weights.
        """
        device, count = self.sizes.device, len(self.sizes)
        near, labels = self.of_neighbours[to_device(rows, device)], to_device(labels, device)
        n = self.sizes.new_zeros(len(near), count + 1).scatter_add(1, near, self.sizes.new_ones(near.shape))
        n, own = n[:, :count], labels.clamp(min=0)[:, None]
        shares = n / (near.shape[1] - n + self.sizes)
        shares.scatter_add_(1, own, (n.sum(1, keepdim=True) == 0).float())
        shares /= shares.sum(dim=1, keepdim=True)
        return shares, torch.exp(-sharpness * (1 - shares.gather(1, own)[:, 0]) ** 2) * (labels >= 0)


def nearby_clusters(rows, others, labels, k):
    """Find the clusters of each image's k nearest ones; where both are one modality itself counts.

    Args: rows: (N, D), others: (M, D) tensors, compared by cosine; labels: (M,) clusters of the others, -1 for none; k:
        at most M count. Returns: `NearbyClusters`.
    """
    rows, others = (F.normalize(x.float(), dim=1) for x in (rows, others))
    count = int(labels.max()) + 1
    clusters = to_device(np.where(labels >= 0, labels, count), rows.device)
    return NearbyClusters(clusters[nearest(rows, others, k)], torch.bincount(clusters, minlength=count)[:count].float())
