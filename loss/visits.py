"""Steps in which batches visit memories one after the other, as in PGM and RPNR.

In their released code the backward pass renews a memory after each visit, so a later visit's gradient multiplies rows
that are newer than the probabilities in its loss. METHOD.GRADIENTS exact, the default, is the gradient of the loss that
is reported; released is theirs. The memories after a step are the same.
"""
import copy
from typing import NamedTuple

import numpy as np
import torch

from loss.cluster_memory import MOMENTUM, TEMPERATURE, cluster_memories
from loss.links import LinkingMethod, link_by
from utils.modality import Modality
from utils.runtime import to_device
from utils.settings import Range, Setting

CROSS_WEIGHT = Setting("CROSS_WEIGHT", 0.25, Range(0), "of the cross-modal loss; with 0 its images still renew the "
                       "memory")
GRADIENTS = Setting("GRADIENTS", "exact", ("exact", "released"), "of the loss that is reported, or as the released "
                    "code computes them (loss/visits.py)")


class Visit(NamedTuple):
    """A batch that meets a memory: a loss, and the renewal of the memory."""

    loss: str           # its name
    memory: str         # its name
    batch: Modality
    labels: np.ndarray  # (B,) clusters of the memory, -1 for none
    weight: float
    shares: torch.Tensor | None = None      # (B, K) target shares of all clusters; None: 1 of the label


class VisitingMethod(LinkingMethod):
    """A method whose batches also meet the other modality's memory, as the clusters that their own are linked with.

    They do so from METHOD.CROSS_EPOCH on, in turns: the visible batch, in the next epoch the infrared one, and so on. A
    batch holds two views of each visible image.
    """

    SETTINGS = (TEMPERATURE, MOMENTUM, link_by("centroid"), CROSS_WEIGHT, GRADIENTS)
    views = 2
    kind = None         # of memories; None: METHOD.RENEWAL says it

    def start(self, start, epoch):
        """Begin an epoch with prototypes that are the clusters' mean features; train on the clusters as they are."""
        self.epoch, self.epoch_links = epoch, self.link(start)
        self.memories = cluster_memories(start, self.settings, self.kind)
        return start.labels

    def losses(self, features, batch):
        """Compute {"rgb", "ir"} and, where the modalities meet, "cross"."""
        self.visits = self.visits_of(batch)
        return visit_losses(self.visits, self.memories, features, self.settings.gradients)

    def visits_of(self, batch):
        """List the visits of a batch, in the order in which the released code's backward pass makes them."""
        own = [Visit(m.value, m.value, m, batch.labels[m], 1.0) for m in Modality]
        turn = self.epoch - self.settings.cross_epoch
        if turn < 0:
            return own
        links = self.links_now()
        m, partner = (Modality.IR, links.ir_to_rgb) if turn % 2 else (Modality.RGB, links.rgb_to_ir)
        return [*self.crossing(m, batch.labels[m], partner), *own]

    def crossing(self, modality, labels, partner):
        """List the visits across: one to the other memory; none where no cluster has a partner.

        Args: modality: whose batch crosses; labels: (B,) its clusters; partner: (K,) of each cluster, -1 for none.
        """
        cross = Visit("cross", modality.other.value, modality, partner[labels], self.settings.cross_weight)
        return [cross] if (partner >= 0).any() else []

    def update(self, features, batch):
        """Move the prototypes by all visits of `losses`, one after the other."""
        for visit in self.visits:
            self.memories[visit.memory].update(*with_partner(features[visit.batch], visit.labels))
        return {}


def visit_losses(visits, memories, features, gradients):
    """Compute the losses of all visits, times their weights: {name: scalar}; the memories stay as they are.

    Args: visits: in the order in which the released code's backward pass makes them; memories: name -> memory;
        features: Modality -> (B, D); gradients: "exact", or "released": a visit's gradient multiplies a copy of the
        memory that the visits before it have renewed.
    """
    losses, renewed = {}, dict(memories)
    for visit in visits:
        x, clusters = with_partner(features[visit.batch], visit.labels)
        target = clusters if visit.shares is None else with_partner(visit.shares, visit.labels)[0]
        losses[visit.loss] = visit.weight * renewed[visit.memory].loss(x, target, memories[visit.memory])
        if gradients == "released":
            renewed[visit.memory] = copy.deepcopy(renewed[visit.memory])
            renewed[visit.memory].update(x, clusters)
    return losses


def with_partner(x, labels):
    """Keep the rows of x (B, D) and labels (B,) whose label is not -1."""
    kept = np.flatnonzero(labels >= 0)
    return (x, labels) if len(kept) == len(labels) else (x[to_device(kept, x.device)], labels[kept])
