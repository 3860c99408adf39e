"""RPNR: PGM's alternating loss with calibrated labels, optimal transport, mean and hard prototypes, and relations.

Yin et al., "Robust Pseudo-label Learning with Neighbor Relation for Unsupervised Visible-Infrared Person
Re-Identification" (ACM MM 2024).
"""
import numpy as np
import torch
import torch.nn.functional as F

from loss.association import optimal_transport
from loss.calibration import calibrate
from loss.cluster_memory import cross_entropy, hardest_samples
from loss.pgm import PGM, Visit
from utils.distributed import ALONE
from utils.modality import Modality
from utils.runtime import to_device

# Released numbers: cross entropy from which the mean prototypes' share of the loss begins, and the weight of both
# shares; what a squared distance is divided by in a pair's weight, and the distance up to which pairs are pushed apart.
MARGIN, SHARE, SIGMA, DELTA = 0.2, 0.5, 1.0, 1.0


class RPNR(PGM):
    """PGM with labels calibrated at the epoch's start, a third memory of linked clusters, and a relation loss."""

    unit_means, mirrored = False, True
    associate = staticmethod(optimal_transport)

    def __init__(self, means, epoch, settings, links=None, labels=None, processes=ALONE):
        super().__init__(means, epoch, settings, links, labels, processes)
        if self.meets:
            rows = hybrid_means(*(means[m] for m in Modality), self.links().ir_to_rgb, labels[Modality.IR])
            self.hybrid = self.new_memory(rows)

    def new_memory(self, prototypes):
        """Build a memory. Args: prototypes: (K, D)."""
        return MeanHardMemory(prototypes, self.settings.temperature, self.settings.momentum, MARGIN, SHARE)

    @classmethod
    def relabel(cls, features, labels, settings):
        """Calibrate the labels of both modalities. Args: as `CrossMemory.relabel`."""
        return {m: calibrate(features[m], labels[m], settings.top_images) for m in Modality}

    @property
    def named(self):
        """The memories by name."""
        return {**super().named, **({"hybrid": self.hybrid} if self.meets else {})}

    @property
    def needs_whole_batch(self):
        """The relation loss is one of all pairs of the batch."""
        return super().needs_whole_batch or (self.meets and self.settings.relation_weight > 0)

    def cross_visits(self, labels):
        """List the visits across the modalities: the hybrid memory's first, then PGM's."""
        batch, partner = self.crossing()
        clusters = partner[labels[batch]]
        if batch is Modality.IR:        # the hybrid memory counts as the IR one does
            clusters = np.where(clusters >= 0, labels[batch], -1)
        return [Visit("loss_hybrid", "hybrid", batch, clusters, self.settings.hybrid_weight),
                *super().cross_visits(labels)]

    def losses(self, features, labels):
        """Compute PGM's losses, "loss_hybrid", and "loss_relation", the sum of both modalities', times their weights.

        Args: as `CrossMemory.losses`.
        """
        losses, s = super().losses(features, labels), self.settings
        if self.meets:
            rows = [features[m].float() for m in Modality]
            if s.relation == "normalised":
                rows = [F.normalize(x, dim=1) for x in rows]
            losses["loss_relation"] = s.relation_weight * sum(relation_loss(x, SIGMA, DELTA) for x in rows)
        return losses

    def state_dict(self):
        """Return what a resumed run needs."""
        return {**super().state_dict(), **({"hybrid": self.hybrid.state_dict()} if self.meets else {})}

    def load_state_dict(self, state):
        """Copy the prototypes of `state_dict`."""
        super().load_state_dict(state)
        if self.meets:
            self.hybrid.load_state_dict(state["hybrid"])


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
        labels = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
        clusters, hardest = hardest_samples(x, labels, self.prototypes)
        _, counts = np.unique(labels, return_counts=True)
        sorted_x = x[to_device(np.argsort(labels, kind="stable"), x.device)]
        mean = torch.stack([rows.mean(0) for rows in sorted_x.split(counts.tolist())])      # alike in all processes
        for rows, target in ((self.prototypes, mean), (self.hard, x[hardest])):
            rows[clusters] = F.normalize(self.momentum * rows[clusters] + (1 - self.momentum) * target, dim=1)

    def state_dict(self):
        """Return what a resumed run needs, to the bit: {"prototypes": (K, D), "hard": (K, D)}."""
        return {"prototypes": self.prototypes, "hard": self.hard}

    def load_state_dict(self, state):
        """Copy the prototypes of `state_dict`."""
        device = self.prototypes.device
        self.prototypes, self.hard = (state[name].to(device, copy=True) for name in ("prototypes", "hard"))


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
