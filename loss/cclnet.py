"""CCLNet: prototypes of linked clusters are swapped.

"Unveiling the Power of CLIP in Unsupervised Visible-Infrared Person Re-Identification" (ACM MM 2023).
"""
import numpy as np
import torch.nn.functional as F

from loss.association import hungarian
from loss.cross_memory import CrossMemory
from utils.modality import Modality
from utils.runtime import to_device


class CCLNetMemory(CrossMemory):
    """Cluster memories whose prototypes are swapped across linked clusters, from the swap epoch on."""

    associate = staticmethod(hungarian)
    _open_swap = None       # what `_finish` needs of an update whose swap is still to be done

    @property
    def memories(self):
        """Modality -> `ClusterMemory`, after the swap of the last update."""
        self._finish()
        return self._memories

    def update(self, features, labels):
        """Move the prototypes to the batch, then swap linked ones, if this epoch does.

        On a GPU the swap is put off until the prototypes are next asked for: the host then matches while the GPU is
        busy with the next batch's forward pass.

        Args: as `losses`.
        Returns: numbers of the links before the swap, {"matched": how many, "matched_similarity": their mean inner
            product, a scalar tensor}; empty without swapping, and until a swap that was put off is done.
        """
        numbers = super().update(features, labels)
        if self.meets:
            self._open_swap = labels, numbers
            self._finish()
        return numbers

    def _finish(self):
        """Do the swap of the last update, if it was put off."""
        if self._open_swap is None:
            return
        (labels, numbers), self._open_swap = self._open_swap, None
        links = self.links()
        s, (*_, similarity) = self.settings, self._pairs(links)
        numbers |= {"matched": len(similarity), "matched_similarity": similarity.mean() if len(similarity) else 0.0}
        swap(*(memory.prototypes for memory in self.memories.values()), links, labels, s.swap_scale, s.swap_order)


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
