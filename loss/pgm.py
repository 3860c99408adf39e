"""PGM: a cross-modal loss that alternates between the modalities, over many-to-one links.

Wu and Ye, "Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph Matching and Alternate
Learning" (CVPR 2023).
"""
import copy
from typing import NamedTuple

import numpy as np

from loss.association import progressive
from loss.cross_memory import CrossMemory, with_partner
from utils.modality import Modality


class Visit(NamedTuple):
    """A batch that meets a memory: a loss, and the renewal of the memory."""

    name: str           # of the loss
    memory: str         # "rgb", "ir" or another of `PGM.named`
    batch: Modality
    labels: np.ndarray  # (B,) clusters of the memory, -1 for none
    weight: float


class PGM(CrossMemory):
    """Cluster memories of both modalities, which from the swap epoch on the other modality's batch meets too.

    In odd epochs, counted from 0 at the swap epoch, the IR batch meets the RGB memory, in even ones the RGB batch the
    IR memory, each image as one of the cluster that its own is linked with. A batch holds two views of each visible
    image.
    """

    match_by = "centroid"
    renewal = "hard"
    views = 2
    associate = staticmethod(progressive)
    _links = None           # those of the step

    @property
    def is_odd(self):
        """Whether the IR batch meets the RGB memory in this epoch, not the other way round."""
        return (self.epoch - self.settings.swap_epoch) % 2 == 1

    @property
    def named(self):
        """The memories by name."""
        return {m.value: memory for m, memory in self.memories.items()}

    @property
    def needs_whole_batch(self):
        """Released gradients depend on the order of images; the cross-modal loss is a mean over the linked ones."""
        return self.settings.gradients == "released" or bool(self.meets and (self.crossing()[1] < 0).any())

    def links(self):
        """Return the epoch's `Links`, or those of the prototypes, which are linked once in a step."""
        if self._links is None:
            self._links = super().links()
        return self._links

    def visits(self, labels):
        """List the `Visit`s of a step, in the order in which the released code's backward pass makes them.

        Args: labels: Modality -> (B,) clusters of the batch.
        """
        own = [Visit(f"loss_{m.value}", m.value, m, np.asarray(labels[m]), 1.0) for m in Modality]
        return [*self.cross_visits(labels), *own] if self.meets else own

    def cross_visits(self, labels):
        """List the visits across the modalities; none where the batch's modality has no link at all."""
        batch, partner = self.crossing()
        return [Visit("loss_cross", batch.other.value, batch, partner[labels[batch]], self.settings.cross_weight)
                ] if (partner >= 0).any() else []

    def crossing(self):
        """Return the modality whose batch meets the other's memory in this epoch, and its clusters' partners (K,)."""
        links = self.links()
        return (Modality.IR, links.ir_to_rgb) if self.is_odd else (Modality.RGB, links.rgb_to_ir)

    def losses(self, features, labels):
        """Compute the losses of all visits, times their weights: {"loss_cross", "loss_rgb", "loss_ir"}.

        The memories stay as they are until `update`. In the released code the backward pass renews a memory after each
        visit, so that a later visit's gradient multiplies rows that are newer than the probabilities in it; with
        MEMORY.GRADIENTS released that is done here on copies.

        Args: as `CrossMemory.losses`.
        """
        before, losses = self.named, {}
        memories = copy.deepcopy(before) if self.settings.gradients == "released" else before
        for visit in self.visits(labels):
            x, clusters = with_partner(features[visit.batch], visit.labels)
            memory = memories[visit.memory]
            if memories is before:
                losses[visit.name] = visit.weight * memory.loss(x, clusters)
            else:       # a copy for autograd, which multiplies its rows after the update
                losses[visit.name] = visit.weight * copy.deepcopy(memory).loss(x, clusters, before[visit.memory])
                memory.update(x, clusters)
        return losses

    def update(self, features, labels):
        """Renew the memories by all visits, one after the other. Args: as `losses`. Returns: {}."""
        memories = self.named
        for visit in self.visits(labels):
            memories[visit.memory].update(*with_partner(features[visit.batch], visit.labels))
        self._links = None
        return {}

    def load_state_dict(self, state):
        """Copy the prototypes of `state_dict`."""
        super().load_state_dict(state)
        self._links = None
