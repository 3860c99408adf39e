"""The method's heart: the memories of both modalities, and what they exchange.

A step of the training loop is

    losses = memory.losses(features, labels)
    ... backward, optimiser ...
    memory.update(features, labels)
"""
import numpy as np
import torch.nn.functional as F

from loss.association import hungarian
from loss.cluster_memory import ClusterMemory
from utils.distributed import ALONE
from utils.modality import Modality
from utils.runtime import beside_later_work, gpu_rounding, mark_on_gpu, to_device


class CrossMemory:
    """Both modalities' cluster memories, whose prototypes are swapped across linked clusters (CCLNet).

    Args:
        centroids: Modality -> (K, D), the start of the prototypes; temperature, momentum: of `ClusterMemory`;
        swaps: whether prototypes are swapped in this epoch; swap_scale: share that a prototype keeps in a swap;
        swap_order: see `swap`; processes: of `utils.distributed`, which all keep the same memories.
    """

    def __init__(self, centroids, temperature, momentum, swaps, swap_scale, swap_order, processes=ALONE):
        self._memories = {m: ClusterMemory(centroids[m], temperature, momentum) for m in Modality}
        self.swaps, self.swap_scale, self.swap_order, self.processes = swaps, swap_scale, swap_order, processes
        self._open_swap = None      # what `_finish` needs of an update whose swap is still to be done

    @property
    def memories(self):
        """Modality -> `ClusterMemory`, after the swap of the last update."""
        self._finish()
        return self._memories

    def losses(self, features, labels):
        """Compute each modality's contrastive loss: {"loss_rgb", "loss_ir"}, scalars.

        Args: features: Modality -> (B, D); labels: Modality -> (B,) clusters of this epoch.
        """
        return {f"loss_{m.value}": memory.loss(features[m], labels[m]) for m, memory in self.memories.items()}

    def update(self, features, labels):
        """Move the prototypes to the batch, then swap linked ones, if this epoch does.

        On a GPU the swap is put off until the prototypes are next asked for: the host then matches while the GPU is
        busy with the next batch's forward pass.

        Args: as `losses`.
        Returns: numbers of the links before the swap, {"matched": how many, "matched_similarity": their mean inner
            product, a scalar tensor}; empty without swapping, and until a swap that was put off is done.
        """
        for m, memory in self.memories.items():
            memory.update(features[m], labels[m])
        numbers, rgb = {}, self._memories[Modality.RGB].prototypes
        if self.swaps:
            self._open_swap = labels, numbers, mark_on_gpu(rgb)
            if not self._puts_off(rgb.device):
                self._finish()
        return numbers

    @staticmethod
    def _puts_off(device):
        return device.type == "cuda"

    def _finish(self):
        """Do the swap of the last update, if it was put off."""
        if self._open_swap is None:
            return
        (labels, numbers, updated), self._open_swap = self._open_swap, None
        with beside_later_work(updated):
            links = self.links()
        *_, similarity = self._pairs(links)
        numbers |= {"matched": len(similarity), "matched_similarity": similarity.mean() if len(similarity) else 0.0}
        swap(*(memory.prototypes for memory in self.memories.values()), links, labels, self.swap_scale, self.swap_order)

    def links(self):
        """Associate the prototypes as they are now: `Links`; the first process does it for all.

        Their inner products are never rounded to TF32.
        """
        with gpu_rounding("fp32"):
            return self.processes.once(lambda: hungarian(*(self.memories[m].prototypes for m in Modality)))

    def pairs(self, links=None):
        """List linked clusters as they are now: RGB clusters (M,), IR clusters (M,), their inner products (M,), arrays.

        Args: links: of `links`, made here if None.
        """
        rgb, ir, similarity = self._pairs(self.links() if links is None else links)
        return rgb, ir, similarity.cpu().numpy()

    def _pairs(self, links):
        """List linked clusters as `pairs` does, with the inner products still on the device."""
        rgb, ir = links.pairs()
        rows, others = (memory.prototypes[to_device(clusters, memory.prototypes.device)]
                        for memory, clusters in zip(self.memories.values(), (rgb, ir)))
        return rgb, ir, (rows * others).sum(1)

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
    rows, other_rows = (to_device(v, prototypes.device) for v in (clusters, partner[clusters]))
    prototypes[rows] = F.normalize(scale * prototypes[rows] + (1 - scale) * others[other_rows], dim=1)
