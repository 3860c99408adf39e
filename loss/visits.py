"""Steps in which batches visit memories one after the other, as in PGM and RPNR.

In their released code the backward pass renews a memory after each visit, so a later visit's gradient multiplies rows
that are newer than the probabilities in its loss. METHOD.GRADIENTS exact, the default, is the gradient of the loss that
is reported; released is theirs. The memories after a step are the same.
"""
import copy
from typing import NamedTuple

import numpy as np
import torch

from loss.cluster_memory import MOMENTUM, TEMPERATURE
from loss.links import heads_for, link_by, links_of_epoch, listed, similarity
from loss.method import Method
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


class VisitingMethod(Method):
    """What PGM and RPNR share. A subclass has a `rule` of links, makes `memories` by name in `start`, with
    `epoch_links`, and lists the `visits` of a batch in `losses`."""

    SETTINGS = (TEMPERATURE, MOMENTUM, link_by("centroid"), CROSS_WEIGHT, GRADIENTS)
    views = 2

    @property
    def needs(self):
        """Heads that are embedded at an epoch's start."""
        return heads_for(self.settings.link_by)

    def link(self, start):
        """Link an epoch's clusters: `Links`, None where the prototypes of each step are linked."""
        return links_of_epoch(self.rule, start, self.settings.link_by)

    def links_now(self):
        """Return the epoch's `Links`, or link the prototypes as they are."""
        return self.epoch_links or self.rule(self._cosines())

    def update(self, features, batch):
        """Move the prototypes by all visits of `losses`, one after the other."""
        for visit in self.visits:
            self.memories[visit.memory].update(*with_partner(features[visit.batch], visit.labels))
        return {}

    def links(self):
        """Return the epoch's `LinkedClusters`, or those of the prototypes as they are."""
        return listed(self.links_now(), self._cosines())

    def prototypes(self):
        """Return the prototypes of all memories: {"rgb": (K_rgb, D), "ir": (K_ir, D), ...}."""
        return {name: memory.prototypes for name, memory in self.memories.items()}

    def _cosines(self):
        rows = self.prototypes()
        return similarity(rows["rgb"], rows["ir"]).cpu().numpy()


def own_visits(batch):
    """List the visits of each modality's batch to its own memory, "rgb" and "ir"."""
    return [Visit(m.value, m.value, m, np.asarray(batch.labels[m]), 1.0) for m in Modality]


def crossing(links, epoch, cross_epoch):
    """Return the modality whose batch meets the other's memory in an epoch, and its clusters' partners (K,).

    In odd epochs, counted from 0 at `cross_epoch`, it is the infrared batch, in even ones the visible batch.
    """
    odd = (epoch - cross_epoch) % 2 == 1
    return (Modality.IR, links.ir_to_rgb) if odd else (Modality.RGB, links.rgb_to_ir)


def cross_visits(batch, modality, partner, weight):
    """List the visit of a modality's batch to the other's memory; none where none of its clusters has a partner."""
    labels = partner[batch.labels[modality]]
    return [Visit("cross", modality.other.value, modality, labels, weight)] if (partner >= 0).any() else []


def visit_losses(visits, memories, features, gradients):
    """Compute the losses of all visits, times their weights: {name: scalar}; the memories stay as they are.

    Args: visits: in the order in which the released code's backward pass makes them; memories: name -> memory;
        features: Modality -> (B, D); gradients: "exact", or "released": each visit renews copies before the next.
    """
    losses, renewed = {}, copy.deepcopy(memories) if gradients == "released" else memories
    for visit in visits:
        x, clusters = with_partner(features[visit.batch], visit.labels)
        target = clusters if visit.shares is None else with_partner(visit.shares, visit.labels)[0]
        memory = renewed[visit.memory]
        if gradients == "released":     # autograd multiplies the rows of a copy, which the update leaves alone
            losses[visit.loss] = visit.weight * copy.deepcopy(memory).loss(x, target, memories[visit.memory])
            memory.update(x, clusters)
        else:
            losses[visit.loss] = visit.weight * memory.loss(x, target)
    return losses


def with_partner(x, labels):
    """Keep the rows of x (B, D) and labels (B,) whose label is not -1."""
    kept = np.flatnonzero(labels >= 0)
    return (x, labels) if len(kept) == len(labels) else (x[to_device(kept, x.device)], labels[kept])
