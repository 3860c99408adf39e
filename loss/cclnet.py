"""CCLNet: each modality has a cluster memory, and prototypes of linked clusters are swapped.

"Unveiling the Power of CLIP in Unsupervised Visible-Infrared Person Re-Identification" (ACM MM 2023).
"""
import numpy as np
import torch.nn.functional as F

from loss.cluster_memory import MEMORIES, MOMENTUM, TEMPERATURE, cluster_means, renewal
from loss.links import heads_for, hungarian, link_by, links_of_epoch, listed, similarity
from loss.method import Method
from utils.modality import Modality
from utils.runtime import to_device, to_host
from utils.settings import Range, Setting


class CCLNet(Method):
    """Cluster memories whose prototypes are swapped across linked clusters, from METHOD.CROSS_EPOCH on."""

    SETTINGS = (TEMPERATURE, MOMENTUM, renewal("plain"), link_by("prototype"),
                Setting("SWAP_SCALE", 0.1, Range(0, 1), "share that a prototype keeps when swapped"),
                Setting("SWAP_ORDER", "released", ("released", "simultaneous"), "whether infrared prototypes are mixed "
                        "with visible ones that have changed already, as in the released code, or with the old ones"))
    rule = staticmethod(hungarian)

    @property
    def needs(self):
        """Heads that are embedded at an epoch's start."""
        return heads_for(self.settings.link_by)

    def start(self, start, epoch):
        """Begin an epoch with prototypes that are the clusters' mean features; train on the clusters as they are."""
        s = self.settings
        self.memories = {m: MEMORIES[s.renewal](cluster_means(start.features["feature"][m], start.labels[m]),
                                                s.temperature, s.momentum) for m in Modality}
        self.epoch_links = self.link(start)
        self.crosses, self.due = epoch >= s.cross_epoch, None
        return start.labels

    def link(self, start):
        """Link an epoch's clusters: `Links`, None where the prototypes of each step are linked."""
        return links_of_epoch(self.rule, start, self.settings.link_by)

    def losses(self, features, batch):
        """Compute each modality's contrastive loss: {"rgb", "ir"}."""
        self.swap_what_is_due()
        return {m.value: memory.loss(features[m], batch.labels[m]) for m, memory in self.memories.items()}

    def update(self, features, batch):
        """Move the prototypes to the batch; from METHOD.CROSS_EPOCH on the swap is due.

        It is done before the prototypes are next read: a GPU's host finds the links while the GPU is busy with the
        next batch's forward pass.
        """
        memories = list(self.memories.values())
        memories[0].update_all(memories, [features[m] for m in self.memories], [batch.labels[m] for m in self.memories])
        if self.crosses:
            self.due = batch.labels, self._similarity()
        return {}

    def swap_what_is_due(self):
        """Swap the prototypes of the last batch's clusters with their partners', if that was not done yet."""
        if self.due is None:
            return
        (labels, found), self.due = self.due, None
        links, s = self.epoch_links or self.rule(found()), self.settings
        swap(*(memory.prototypes for memory in self.memories.values()), links, labels, s.swap_scale, s.swap_order)

    def links(self):
        """Link the prototypes as the last step did, before its swap: `LinkedClusters`."""
        found = (self.due[1] if self.due else self._similarity())()
        return listed(self.epoch_links or self.rule(found), found)

    def prototypes(self):
        """Return the prototypes after the last swap: {"rgb": (K_rgb, D), "ir": (K_ir, D)}."""
        self.swap_what_is_due()
        return {m.value: memory.prototypes for m, memory in self.memories.items()}

    def _similarity(self):
        """Begin to fetch the cosines of all prototypes (K_rgb, K_ir): a function that returns the array."""
        return to_host(similarity(*(memory.prototypes for memory in self.memories.values())))


def swap(rgb, ir, links, labels, scale, order):
    """Mix prototypes of this batch's clusters with their partners', in place.

    m <- normalise(scale m + (1 - scale) partner), for every cluster that is in the batch and has a link.

    Args:
        rgb: (K_rgb, D), ir: (K_ir, D) prototypes; links: `Links`; labels: Modality -> (B,) of the batch;
        scale: share that a prototype keeps;
        order: "released": IR prototypes are mixed with RGB ones *after* those have changed, as in the released code (an
            alias there); "simultaneous": both are mixed with the other's old value, as in the paper.
    """
    old_rgb = rgb if order == "released" else rgb.clone()
    _mix(rgb, labels[Modality.RGB], links.rgb_to_ir, ir, scale)
    _mix(ir, labels[Modality.IR], links.ir_to_rgb, old_rgb, scale)


def _mix(prototypes, labels, partner, others, scale):
    """Mix the linked clusters among labels (B,) with rows of others. Args: partner: (K,) row of each, -1 for none."""
    clusters = np.unique(labels)
    clusters = clusters[partner[clusters] >= 0]
    rows, other_rows = (to_device(v, prototypes.device) for v in (clusters, partner[clusters]))
    prototypes[rows] = F.normalize(scale * prototypes[rows] + (1 - scale) * others[other_rows], dim=1)
