"""The method's heart: the memories of both modalities, and what they exchange.

A step of the training loop is

    losses = memory.losses(features, labels)
    ... backward, optimiser ...
    memory.update(features, labels)
"""
import numpy as np
import torch
import torch.nn.functional as F

from loss.association import hungarian
from loss.cluster_memory import ClusterMemory
from utils.distributed import ALONE
from utils.modality import Modality


class CrossMemory:
    """Both modalities' cluster memories, whose prototypes are swapped across linked clusters (CCLNet).

    Args:
        centroids: Modality -> (K, D), the start of the prototypes; temperature, momentum: of `ClusterMemory`;
        swaps: whether prototypes are swapped in this epoch; swap_scale: share that a prototype keeps in a swap;
        swap_order: see `swap`; processes: of `utils.distributed`, which all keep the same memories.
    """

    def __init__(self, centroids, temperature, momentum, swaps, swap_scale, swap_order, processes=ALONE):
        self.memories = {m: ClusterMemory(centroids[m], temperature, momentum) for m in Modality}
        self.swaps, self.swap_scale, self.swap_order, self.processes = swaps, swap_scale, swap_order, processes

    def losses(self, features, labels):
        """Compute each modality's contrastive loss: {"loss_rgb", "loss_ir"}, scalars.

        Args: features: Modality -> (B, D); labels: Modality -> (B,) clusters of this epoch.
        """
        return {f"loss_{m.value}": memory.loss(features[m], labels[m]) for m, memory in self.memories.items()}

    def update(self, features, labels):
        """Move the prototypes to the batch, then swap linked ones, if this epoch does.

        Args: as `losses`.
        Returns: numbers of the links before the swap, {"matched": how many, "matched_similarity": their mean inner
            product}; empty without swapping.
        """
        for m, memory in self.memories.items():
            memory.update(features[m], labels[m])
        if not self.swaps:
            return {}
        links = self.links()
        *_, similarity = self.pairs(links)
        swap(*(memory.prototypes for memory in self.memories.values()), links, labels, self.swap_scale, self.swap_order)
        return {"matched": len(similarity), "matched_similarity": float(similarity.mean()) if len(similarity) else 0.0}

    def links(self):
        """Associate the prototypes as they are now: `Links`; the first process does it for all."""
        return self.processes.once(lambda: hungarian(*(self.memories[m].prototypes for m in Modality)))

    def pairs(self, links=None):
        """List linked clusters as they are now: RGB clusters (M,), IR clusters (M,), their inner products (M,), arrays.

        Args: links: of `links`, made here if None.
        """
        rgb, ir = (self.links() if links is None else links).pairs()
        rows, others = (memory.prototypes[torch.from_numpy(clusters).to(memory.prototypes.device)]
                        for memory, clusters in zip(self.memories.values(), (rgb, ir)))
        return rgb, ir, (rows * others).sum(1).cpu().numpy()

    def state_dict(self):
        """Return what a resumed run needs: {"rgb": state of its memory, "ir": ...}."""
        return {m.value: memory.state_dict() for m, memory in self.memories.items()}

    def load_state_dict(self, state):
        """Copy the prototypes of `state_dict`."""
        for m, memory in self.memories.items():
            memory.load_state_dict(state[m.value])


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
    rows, other_rows = (torch.from_numpy(v).to(prototypes.device) for v in (clusters, partner[clusters]))
    prototypes[rows] = F.normalize(scale * prototypes[rows] + (1 - scale) * others[other_rows], dim=1)
