"""CCLNet: each modality has a cluster memory, and prototypes of linked clusters are swapped.

"Unveiling the Power of CLIP in Unsupervised Visible-Infrared Person Re-Identification" (ACM MM 2023).
"""
import numpy as np

from loss.cluster_memory import MOMENTUM, RENEWAL, TEMPERATURE, cluster_memories, mix, update_memories
from loss.links import LINK_BY, LinkingMethod, hungarian
from utils.modality import Modality
from utils.runtime import to_device
from utils.settings import Range, Setting


class CCLNet(LinkingMethod):
    """Cluster memories whose prototypes are swapped across linked clusters, from METHOD.CROSS_EPOCH on."""

    SETTINGS = (TEMPERATURE, MOMENTUM, RENEWAL, LINK_BY,
                Setting("SWAP_SCALE", 0.1, Range(0, 1), "share that a prototype keeps when swapped"),
                Setting("SWAP_ORDER", "released", ("released", "simultaneous"), "whether infrared prototypes are mixed "
                        "with visible ones that have changed already, as in the released code, or with the old ones"))
    rule = staticmethod(hungarian)

    def start(self, start, epoch):
        """Begin an epoch with prototypes that are the clusters' mean features; train on the clusters as they are."""
        self.memories = cluster_memories(start, self.settings)
        self.epoch_links = self.link(start)
        self.crosses, self.due = epoch >= self.settings.cross_epoch, None
        return start.labels

    def losses(self, features, batch):
        """Compute each modality's contrastive loss: {"rgb", "ir"}."""
        self.swap_what_is_due()
        return {m.value: self.memories[m.value].loss(features[m], batch.labels[m]) for m in Modality}

    def update(self, features, batch):
        """Move the prototypes to the batch; from METHOD.CROSS_EPOCH on the swap is due.

        The swap is done before the prototypes are next read: a GPU's host finds the links while the GPU is busy with
        the next batch's forward pass.
        """
        update_memories(self.memories, features, batch.labels)
        if self.crosses:
            self.due = batch.labels, self.cosines()
        return {}

    def swap_what_is_due(self):
        """Swap the prototypes of the last batch's clusters with their partners', if that was not done yet."""
        if self.due:
            (labels, cosines), self.due = self.due, None
            links, s = self.epoch_links or self.rule(cosines()), self.settings
            swap(*(memory.prototypes for memory in self.memories.values()), links, labels, s.swap_scale, s.swap_order)

    def prototypes(self):
        """Return the prototypes after the last swap: {"rgb": (K_rgb, D), "ir": (K_ir, D)}."""
        self.swap_what_is_due()
        return super().prototypes()


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
    for m, prototypes, partner, others in ((Modality.RGB, rgb, links.rgb_to_ir, ir),
                                           (Modality.IR, ir, links.ir_to_rgb, old_rgb)):
        clusters = np.unique(labels[m])
        clusters = clusters[partner[clusters] >= 0]
        rows, other_rows = (to_device(v, prototypes.device) for v in (clusters, partner[clusters]))
        mix(prototypes, rows, others[other_rows], scale)
