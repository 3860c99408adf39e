"""RPNR: PGM's alternating loss with calibrated labels, optimal transport, mean and hard prototypes, and relations.

Yin et al., "Robust Pseudo-label Learning with Neighbor Relation for Unsupervised Visible-Infrared Person
Re-Identification" (ACM MM 2024).
"""
import numpy as np
import torch
import torch.nn.functional as F

from loss.calibration import calibrate
from loss.cluster_memory import cluster_means, cross_entropy, hardest_samples
from loss.links import optimal_transport
from loss.visits import Visit, VisitingMethod, cross_visits, crossing, own_visits, visit_losses
from utils.modality import Modality
from utils.runtime import to_device
from utils.settings import Range, Setting

# Released numbers: cross entropy from which the mean prototypes' share of the loss begins, and the weight of both
# shares; what a squared distance is divided by in a pair's weight, and the distance up to which pairs are pushed apart.
MARGIN, SHARE, SIGMA, DELTA = 0.2, 0.5, 1.0, 1.0


class RPNR(VisitingMethod):
    """PGM's visits with labels calibrated at the epoch's start, a third memory of linked clusters, a relation loss.

    A batch holds two views of each visible image; clusters are made of means over mirror images.
    """

    SETTINGS = (Setting("HYBRID_WEIGHT", 0.5, Range(0), "of the loss with the hybrid memory; with 0 it still moves"),
                Setting("RELATION", "released", ("released", "normalised"), "length of the features in the relation "
                        "loss: the batch norm's, or 1"),
                Setting("RELATION_WEIGHT", 10.0, Range(0), "of the relation loss"),
                Setting("TOP_IMAGES", 20, Range(1, whole=True), "densest images of a cluster that make its prototype "
                        "for calibration"))
    mirrored = True
    rule = staticmethod(optimal_transport)

    def start(self, start, epoch):
        """Begin an epoch: train on the clusters as they are, from METHOD.CROSS_EPOCH on on calibrated ones.

        Prototypes and links are those of the clusters as they are.
        """
        s, features, self.epoch = self.settings, start.features["feature"], epoch
        means = {m: cluster_means(features[m], start.labels[m]) for m in Modality}
        self.memories = {m.value: self._memory(means[m]) for m in Modality}
        self.epoch_links = self.link(start)
        if epoch < s.cross_epoch:
            return start.labels
        labels = {m: calibrate(features[m], start.labels[m], s.top_images) for m in Modality}
        self.memories["hybrid"] = self._memory(hybrid_means(*means.values(), self.links_now().ir_to_rgb,
                                                            labels[Modality.IR]))
        return labels

    def _memory(self, prototypes):
        return MeanHardMemory(prototypes, self.settings.temperature, self.settings.momentum, MARGIN, SHARE)

    def losses(self, features, batch):
        """Compute {"rgb", "ir"} and, where the modalities meet, "hybrid", "cross" and "relation"."""
        s, self.visits = self.settings, own_visits(batch)
        if self.epoch < s.cross_epoch:
            return visit_losses(self.visits, self.memories, features, s.gradients)
        modality, partner = crossing(self.links_now(), self.epoch, s.cross_epoch)
        hybrid = clusters = partner[batch.labels[modality]]
        if modality is Modality.IR:     # the hybrid memory counts as the infrared one does
            hybrid = np.where(clusters >= 0, batch.labels[modality], -1)
        self.visits = [Visit("hybrid", "hybrid", modality, hybrid, s.hybrid_weight),
                       *cross_visits(batch, modality, partner, s.cross_weight), *self.visits]
        rows = [features[m].float() for m in Modality]
        if s.relation == "normalised":
            rows = [F.normalize(x, dim=1) for x in rows]
        return {**visit_losses(self.visits, self.memories, features, s.gradients),
                "relation": s.relation_weight * sum(relation_loss(x, SIGMA, DELTA) for x in rows)}


class MeanHardMemory:
    """Two prototypes of each cluster: one follows its images' mean in a batch, the other the hardest of them.

    Args:
        prototypes: (K, D), the start of both, L2-normalised here; copied; temperature, momentum: of `ClusterMemory`;
        margin: cross entropy up to which the mean prototypes give no loss; share: weight of both parts.
    """

    def __init__(self, prototypes, temperature, momentum, margin, share):
        self.prototypes = F.normalize(prototypes.detach().float(), dim=1)       # the means
        self.hard = self.prototypes.clone()
        self.temperature, self.momentum, self.margin, self.share = temperature, momentum, margin, share

    def loss(self, x, labels, before=None):
        """Compute share * (CE of the hard prototypes + max(CE of the mean prototypes - margin, 0)).

        Args: as `ClusterMemory.loss`. Returns: a scalar; gradients flow to x alone.
        """
        hard, mean = self.cross_entropies(x, labels, before)
        return self.share * (hard + F.relu(mean - self.margin))

    def cross_entropies(self, x, labels, before=None):
        """Compute the cross entropies of `loss`: with the hard prototypes, with the mean ones."""
        x = F.normalize(x.float(), dim=1)
        return (cross_entropy(x, self.hard, labels, self.temperature, before and before.hard),
                cross_entropy(x, self.prototypes, labels, self.temperature, before and before.prototypes))

    def update(self, x, labels):
        """Move each cluster of the batch once: its mean prototype to its samples' mean, its hard one to the hardest.

        The hardest sample is the one least similar to the mean prototype before the update.

        Args: x: (B, D) features, normalised here; labels: (B,) clusters, on the host where possible.
        """
        if len(x) == 0:
            return
        x = F.normalize(x.detach().float(), dim=1)
        clusters, hardest = hardest_samples(x, labels, self.prototypes)
        _, counts = np.unique(labels, return_counts=True)
        sorted_x = x[to_device(np.argsort(labels, kind="stable"), x.device)]
        mean = torch.stack([rows.mean(0) for rows in sorted_x.split(counts.tolist())])      # alike in all processes
        for rows, target in ((self.prototypes, mean), (self.hard, x[hardest])):
            rows[clusters] = F.normalize(self.momentum * rows[clusters] + (1 - self.momentum) * target, dim=1)


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


def relation_loss(x, sigma, delta):
    """Draw similar pairs of a batch together and push all others apart, weighted by their distance.

    With d the Euclidean distances, s = d over its row's mean (0 on the diagonal counted) and w = exp(-d^2 / sigma),
    without gradient: the mean over pairs i != j of w s^2 + (1 - w) max(delta - s, 0)^2.

    Args: x: (B, D). Returns: a scalar.
    """
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")       # gradient 0 at distance 0
    scaled = distance / distance.mean(dim=1, keepdim=True).clamp(min=1e-12)
    weight = torch.exp(-distance.detach() ** 2 / sigma)
    terms = weight * scaled ** 2 + (1 - weight) * F.relu(delta - scaled) ** 2
    different = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return (terms * different).sum() / max(len(x) * (len(x) - 1), 1)
