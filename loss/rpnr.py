"""RPNR: PGM's alternating loss with calibrated labels, optimal transport, mean and hard prototypes, and relations.

Yin et al., "Robust Pseudo-label Learning with Neighbor Relation for Unsupervised Visible-Infrared Person
Re-Identification" (ACM MM 2024).
"""
import numpy as np
import torch
import torch.nn.functional as F

from loss.cluster_memory import ClusterMemory, cluster_means, cross_entropy, hardest_samples, mix
from loss.links import BLOCK_ROWS, nearest, optimal_transport
from loss.pgm import Alternating
from loss.visits import Visit
from utils.modality import Modality
from utils.runtime import to_device
from utils.settings import Range, Setting

# Released numbers: least cosine of neighbours; cross entropy from which the mean prototypes' share of the loss begins,
# and the weight of both shares; what a squared distance is divided by in a pair's weight, and the distance up to which
# pairs are pushed apart.
SIMILAR, MARGIN, SHARE, SIGMA, DELTA = 0.5, 0.2, 0.5, 1.0, 1.0


class MeanHardMemory(ClusterMemory):
    """Two prototypes of each cluster: one follows its images' mean in a batch, the other the hardest of them.

    Args: as `ClusterMemory`; both start from `prototypes`.
    """

    def __init__(self, prototypes, temperature, momentum):
        super().__init__(prototypes, temperature, momentum)       # the means
        self.hard = self.prototypes.clone()

    def loss(self, x, labels, before=None):
        """Compute SHARE * (CE of the hard prototypes + max(CE of the mean prototypes - MARGIN, 0)).

        Args: as `ClusterMemory.loss`.
        """
        x, before = F.normalize(x.float(), dim=1), before or self
        hard = cross_entropy(x, self.hard, labels, self.temperature, before.hard)
        mean = cross_entropy(x, self.prototypes, labels, self.temperature, before.prototypes)
        return SHARE * (hard + F.relu(mean - MARGIN))

    def _move(self, x, labels):     # the hardest sample is the one that the mean prototype is least similar to
        clusters, hardest = hardest_samples(x, labels, self.prototypes)
        _, counts = np.unique(labels, return_counts=True)
        sorted_x = x[to_device(np.argsort(labels, kind="stable"), x.device)]
        mean = torch.stack([rows.mean(0) for rows in sorted_x.split(counts.tolist())])      # alike in all processes
        mix(self.prototypes, clusters, mean, self.momentum)
        mix(self.hard, clusters, x[hardest], self.momentum)


class RPNR(Alternating):
    """PGM's visits with labels calibrated at the epoch's start, a third memory of linked clusters, a relation loss.

    Clusters are made of means over mirror images.
    """

    SETTINGS = (Setting("HYBRID_WEIGHT", 0.5, Range(0), "of the loss with the hybrid memory; with 0 it still moves"),
                Setting("RELATION", "released", ("released", "normalised"), "length of the features in the relation "
                        "loss: the batch norm's, or 1"),
                Setting("RELATION_WEIGHT", 10.0, Range(0), "of the relation loss"),
                Setting("TOP_IMAGES", 20, Range(1, whole=True), "densest images of a cluster that make its prototype "
                        "for calibration"))
    mirrored, kind = True, MeanHardMemory
    rule = staticmethod(optimal_transport)

    def start(self, start, epoch):
        """Begin an epoch: train on the clusters as they are, from METHOD.CROSS_EPOCH on on calibrated ones.

        Prototypes and links are those of the clusters as they are.
        """
        clusters, features, s = super().start(start, epoch), start.features["feature"], self.settings
        if epoch < s.cross_epoch:
            return clusters
        labels = {m: calibrate(features[m], clusters[m], s.top_images) for m in Modality}
        means = [cluster_means(features[m], clusters[m]) for m in Modality]
        hybrid = hybrid_means(*means, self.links().ir_to_rgb, labels[Modality.IR])
        self.memories["hybrid"] = MeanHardMemory(hybrid, s.temperature, s.momentum)
        return labels

    def crossing(self, modality, labels, partner):
        """List the visits to the hybrid memory, which counts as the infrared one does, and to the other modality's."""
        hybrid = partner[labels]
        if modality is Modality.IR:
            hybrid = np.where(hybrid >= 0, labels, -1)
        return [Visit("hybrid", "hybrid", modality, hybrid, self.settings.hybrid_weight),
                *super().crossing(modality, labels, partner)]

    def losses(self, features, batch):
        """Compute {"rgb", "ir"} and, where the modalities meet, "hybrid", "cross" and "relation"."""
        losses, s = super().losses(features, batch), self.settings
        if self.epoch >= s.cross_epoch:
            rows = [features[m].float() for m in Modality]
            if s.relation == "normalised":
                rows = [F.normalize(x, dim=1) for x in rows]
            losses["relation"] = s.relation_weight * sum(map(relation_loss, rows))
        return losses


def calibrate(features, labels, top):
    """Give each image the label of the cluster whose dense part it is most similar to.

    Args: features: (N, D) of any length; labels: (N,) clusters 0 to K - 1, -1 is in none and stays so; top: see
        `dense_means`.
    Returns: (N,) int64; a cluster may have lost all its images.
    """
    x = F.normalize(features, dim=1)
    prototypes = F.normalize(dense_means(features, labels, density(x, labels), top), dim=1)
    return np.where(labels < 0, -1, nearest(x, prototypes, 1)[:, 0].cpu().numpy())


def density(x, labels):
    """Sum sign(cosine - SIMILAR) between each image and all images of its cluster, itself included.

    Args: x: (N, D) of unit length; labels: (N,) clusters. Returns: (N,) float64 array, NaN for label -1.
    """
    found = np.full(len(labels), np.nan)
    for members in _members(labels):
        own = x[to_device(members, x.device)]
        found[members] = torch.cat([(block @ own.T - SIMILAR).sign().sum(1) for block in own.split(BLOCK_ROWS)]).cpu()
    return found


def dense_means(features, labels, densities, top):
    """Average the `top` densest images of each cluster, the earlier one among equals; all of a smaller cluster.

    Args: features: (N, D); labels, densities: (N,). Returns: (K, D).
    """
    chosen = [members[np.argsort(-densities[members], kind="stable")[:top]] for members in _members(labels)]
    return torch.stack([features[to_device(rows, features.device)].mean(0) for rows in chosen])


def _members(labels):
    """Return the positions of each cluster's images, ascending: a list of arrays."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(labels.max() + 1)))[1:]


def hybrid_means(rgb, ir, ir_to_rgb, labels):
    """Average each IR cluster's mean features with those of its partner; 0 for a cluster without images or partner.

    Args: rgb: (K_rgb, D), ir: (K_ir, D) means of any length; ir_to_rgb: (K_ir,); labels: (N_ir,) corrected clusters.
    Returns: (K_ir, D).
    """
    clusters = np.unique(labels[labels >= 0])
    clusters = clusters[ir_to_rgb[clusters] >= 0]
    rows, partners = (to_device(v, ir.device) for v in (clusters, ir_to_rgb[clusters]))
    hybrid = torch.zeros_like(ir)
    hybrid[rows] = (ir[rows] + rgb[partners]) / 2
    return hybrid


def relation_loss(x):
    """Draw similar pairs of a batch together and push all others apart, weighted by their distance.

    With d the Euclidean distances, s = d over its row's mean (0 on the diagonal counted) and w = exp(-d^2 / SIGMA),
    without gradient: the mean over pairs i != j of w s^2 + (1 - w) max(DELTA - s, 0)^2.

    Args: x: (B, D). Returns: a scalar.
    """
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")       # gradient 0 at distance 0
    scaled = distance / distance.mean(dim=1, keepdim=True).clamp(min=1e-12)
    weight = torch.exp(-distance.detach() ** 2 / SIGMA)
    terms = weight * scaled ** 2 + (1 - weight) * F.relu(DELTA - scaled) ** 2
    different = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return (terms * different).sum() / max(len(x) * (len(x) - 1), 1)
