"""What every method shares: a memory for each modality, their losses, and links between their clusters.

A method is a subclass in a file of its own and a line in loss/methods.py; docs/extending-methods.md adds one. A step of
the training loop is

    losses = memory.losses(features, labels)
    ... backward, optimiser ...
    memory.update(features, labels)
"""
from dataclasses import dataclass

import numpy as np
import torch

from loss.association import Links, no_links
from loss.cluster_memory import ClusterMemory, HardMemory
from utils.distributed import ALONE
from utils.modality import Modality
from utils.runtime import gpu_rounding, to_device

RENEWALS = {"plain": ClusterMemory, "hard": HardMemory}


@dataclass(frozen=True)
class MemorySettings:
    """The numbers of the memories and of all methods; configs/defaults.py explains them."""

    method: str
    match_by: str
    temperature: float
    momentum: float
    renewal: str
    swap_epoch: int             # the first in which the modalities meet
    swap_scale: float
    swap_order: str
    cross_weight: float
    gradients: str
    hybrid_weight: float
    relation: str
    relation_weight: float
    top_images: int


class CrossMemory:
    """Both modalities' cluster memories, which never meet (MEMORY.METHOD none); what the methods begin with.

    Args:
        means: Modality -> (K, D), the mean features of the clusters, the start of the prototypes; epoch: from 1;
        settings: `MemorySettings`;
        links: `Links` that hold for the whole epoch, or None: links of the prototypes as they stand in each step;
        labels: Modality -> (N,) clusters of the images that are trained on; processes: of `utils.distributed`, which
        all keep the same memories.
    """

    match_by = "prototype"      # the matching space where MEMORY.MATCH_BY names none
    renewal = "plain"           # how prototypes move where MEMORY.RENEWAL does not say it
    views = 1                   # of each visible image in a batch
    unit_means = True           # whether `means` are divided by their length first
    mirrored = False            # whether features of an epoch's start are means over an image and its mirror image
    associate = staticmethod(no_links)      # a function of loss/association.py

    def __init__(self, means, epoch, settings, links=None, labels=None, processes=ALONE):
        self.epoch, self.settings, self.fixed, self.processes = epoch, settings, links, processes
        self._memories = {m: self.new_memory(means[m]) for m in Modality}

    @property
    def memories(self):
        """Modality -> the memory of its clusters, as it stands after the last update."""
        return self._memories

    @classmethod
    def restored(cls, state, epoch, settings, labels, device, processes=ALONE):
        """Make the memory of an epoch again from its state. Args: state: of `state_dict`; others: as the class."""
        means = {m: state[m.value]["prototypes"].to(device) for m in Modality}      # of the right size, replaced below
        links = Links(**{side: of.cpu().numpy() for side, of in state["links"].items()}) if "links" in state else None
        memory = cls(means, epoch, settings, links, labels, processes)
        memory.load_state_dict(state)
        return memory

    def new_memory(self, prototypes):
        """Build the memory of a modality. Args: prototypes: (K, D)."""
        s = self.settings
        return RENEWALS[s.renewal or self.renewal](prototypes, s.temperature, s.momentum)

    @classmethod
    def relabel(cls, features, labels, settings):
        """Return the clusters to train on, from the epoch's swap epoch on; centroids and links stay those of `labels`.

        Args: features: Modality -> (N, D) at the epoch's start; labels: Modality -> (N,) clusters; settings:
            `MemorySettings`.
        """
        return labels

    @property
    def meets(self):
        """Whether the modalities meet in this epoch."""
        return self.epoch >= self.settings.swap_epoch

    @property
    def needs_whole_batch(self):
        """Whether `losses` is right for a whole batch alone, not for a mean over parts of it."""
        return False

    def losses(self, features, labels):
        """Compute each modality's contrastive loss: {"loss_rgb", "loss_ir"}, scalars; they are summed for training.

        Args: features: Modality -> (B, D); labels: Modality -> (B,) clusters of this epoch, on the host.
        """
        return {f"loss_{m.value}": memory.loss(features[m], labels[m]) for m, memory in self.memories.items()}

    def update(self, features, labels):
        """Move the prototypes to the batch.

        Args: as `losses`. Returns: numbers for the log, name -> number.
        """
        for m, memory in self.memories.items():
            memory.update(features[m], labels[m])
        return {}

    def links(self):
        """Return the epoch's `Links`, or those of the prototypes now, which the first process makes for all."""
        if self.fixed is not None:
            return self.fixed
        with gpu_rounding("fp32"):      # inner products are never rounded to TF32
            return self.processes.once(lambda: self.associate(*(self.memories[m].prototypes for m in Modality)))

    def pairs(self, links=None):
        """List linked clusters: RGB clusters (M,), IR clusters (M,), inner products of their prototypes (M,), arrays.

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
        """Return what a resumed run needs: {"rgb": state of its memory, "ir": ..., "links": those of the epoch}."""
        links = {} if self.fixed is None else {"links": {
            side: torch.from_numpy(np.asarray(of)) for side, of in self.fixed._asdict().items()}}
        return {**{m.value: memory.state_dict() for m, memory in self.memories.items()}, **links}

    def load_state_dict(self, state):
        """Copy the prototypes of `state_dict`; links are given when the memory is made."""
        for m, memory in self.memories.items():
            memory.load_state_dict(state[m.value])


def with_partner(x, labels):
    """Keep the rows of x (B, D) and labels (B,) whose label is not -1."""
    kept = np.flatnonzero(labels >= 0)
    return (x, labels) if len(kept) == len(labels) else (x[to_device(kept, x.device)], labels[kept])
