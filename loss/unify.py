"""Label unification: visible images get infrared clusters by votes, and both modalities share their memories.

A part of SDCL: Yang et al., "Shallow-Deep Collaborative Learning for Unsupervised Visible-Infrared Person
Re-Identification" (CVPR 2024). There a feature has two depths, which vote against each other; a tower of one depth (all
of CLIP's) has the votes of that one alone.
"""
import numpy as np
import torch
import torch.nn.functional as F

from loss.cluster_memory import MOMENTUM, TEMPERATURE, ClusterMemory, cluster_means
from loss.links import Links, nearest
from loss.method import Method
from loss.visits import GRADIENTS, Visit, visit_losses
from utils.errors import UserError
from utils.modality import Modality
from utils.settings import Range, Setting

DEPTHS = ("", "_shallow")       # behind the names of losses and memories
SMOOTH = 5                      # visible images, itself among them, whose most frequent vote an image gets (released)


class Unify(Method):
    """Cluster memories of each modality, from METHOD.CROSS_EPOCH on one for both, with a cluster per infrared one."""

    SETTINGS = (TEMPERATURE, MOMENTUM, GRADIENTS, Setting("TOP_VOTES", 20, Range(1, whole=True), "infrared images "
                "nearest to a visible one, which vote for its cluster"))
    needs = ("feature", "depths")

    def unifies(self, epoch):
        """Tell whether the labels of an epoch share one range."""
        return epoch >= self.settings.cross_epoch

    def start(self, start, epoch):
        """Begin an epoch: memories of mean features, not of unit length before; train on clusters, or on unified ones.

        A visible image without a cluster of its own is left out, though it counts in the shared memory.
        """
        s, rows, labels = self.settings, start.features["depths"], start.labels
        self.epoch, self.linked, sides = epoch, None, {m.value: (rows[m], labels[m]) for m in Modality}
        self.split = rows[Modality.RGB].shape[1]
        if self.unifies(epoch):
            found = unify(*rows.values(), labels[Modality.IR], s.top_votes)
            sides = {"shared": (torch.cat(list(rows.values())), np.concatenate([found, labels[Modality.IR]]))}
            labels = {**labels, Modality.RGB: np.where(labels[Modality.RGB] < 0, -1, found)}
            both = np.intersect1d(*(np.unique(of[of >= 0]) for of in labels.values()))
            own = np.arange(labels[Modality.IR].max() + 1)
            self.linked = Links(*[np.where(np.isin(own, both), own, -1)] * 2)
            if not len(both):
                raise UserError("no visible image was voted into an infrared cluster: nearly all of their nearest "
                                "infrared images are outliers; raise CLUSTER.EPS, or unify in a later epoch")
        self.memories = {name + depth: ClusterMemory(cluster_means(x, clusters), s.temperature, s.momentum)
                         for name, (features, clusters) in sides.items()
                         for depth, x in zip(DEPTHS, features.unbind(1))}
        return labels

    def losses(self, features, batch):
        """Compute the contrastive losses {"rgb", "ir"}, with two depths also "rgb_shallow" and "ir_shallow"."""
        rows = self.by_depth(features)
        self.visits = [Visit(m.value + depth, ("shared" if self.linked else m.value) + depth, m.value + depth,
                             batch.labels[m], 1.0) for depth in DEPTHS for m in Modality if m.value + depth in rows]
        return visit_losses(self.visits, self.memories, rows, self.settings.gradients)

    def update(self, features, batch):
        """Move the prototypes to the batch, to visible images first."""
        rows = self.by_depth(features)
        for visit in self.visits:
            self.memories[visit.memory].update(rows[visit.batch], visit.labels)
        return {}

    def by_depth(self, features):
        """Split features, Modality -> (B, L x D), by depth: {"rgb", "ir", "rgb_shallow", ...} of (B, D)."""
        return {m.value + depth: rows for m in Modality
                for depth, rows in zip(DEPTHS, features[m].chunk(self.split, dim=1))}

    def links(self):
        """Link each cluster that has images of both modalities with itself."""
        return self.linked


def unify(rgb, ir, labels, top):
    """Find each visible image's infrared cluster: its vote, made smooth among the visible images that are like it.

    Args: rgb: (N_rgb, L, D), ir: (N_ir, L, D) features of L depths, of any length; labels: (N_ir,) clusters, -1 votes
        too; top: infrared images that vote.
    Returns: (N_rgb,) int64, -1 for none; of equally frequent ones the lowest, so -1 wins.
    """
    vote = most_frequent(*votes(rgb, ir, labels, top))
    unit = F.normalize(rgb, dim=2).flatten(1)       # products are sums of the depths' cosines
    of_similar = np.sort(vote[nearest(unit, unit, SMOOTH).cpu().numpy()], axis=1)
    return most_frequent(of_similar, of_similar)


def votes(rgb, ir, labels, top):
    """List the clusters of the infrared images nearest to each visible one, nearest first, by first and last depth.

    Args: as `unify`. Returns: two arrays (N_rgb, top).
    """
    unit = [F.normalize(rows, dim=2).unbind(1) for rows in (rgb, ir)]
    return [labels[nearest(unit[0][depth], unit[1][depth], top).cpu().numpy()] for depth in (0, -1)]


def most_frequent(among, votes):
    """Choose the entry of each row of among (N, T) that is most frequent in votes (N, V), the first of equals.

    The released code takes `torch.topk` of the counts, which leaves open which of equals it gives.
    """
    counts = (among[:, :, None] == votes[:, None]).sum(axis=2)
    return among[np.arange(len(among)), counts.argmax(axis=1)]
