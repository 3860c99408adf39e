"""Steps in which batches visit memories one after the other, as in PGM and those after it.

In their released code the backward pass renews a memory after each visit, so a later visit's gradient multiplies rows
that are newer than the probabilities in its loss. METHOD.GRADIENTS exact, the default, is the gradient of the loss that
is reported; released is theirs. The memories after a step are the same.
"""
import copy
from typing import NamedTuple

import numpy as np
import torch

from utils.runtime import to_device
from utils.settings import Setting

GRADIENTS = Setting("GRADIENTS", "exact", ("exact", "released"), "of the loss that is reported, or as the released "
                    "code computes them (loss/visits.py)")


class Visit(NamedTuple):
    """A batch that meets a memory: a loss, and the renewal of the memory."""

    loss: str           # its name
    memory: str         # its name
    batch: object       # `Modality`, or the name of its features of one depth
    labels: np.ndarray  # (B,) clusters of the memory, -1 for none
    weight: float
    shares: torch.Tensor | None = None      # (B, K) target shares of all clusters; None: 1 of the label


def visit_losses(visits, memories, features, gradients):
    """Compute the losses of all visits, times their weights: {name: scalar}; the memories stay as they are.

    Args: visits: in the order in which the released code's backward pass makes them; memories: name -> memory;
        features: (B, D) by the visits' `batch`; gradients: "exact", or "released": a visit's gradient multiplies a
        copy of the memory that the visits before it have renewed.
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
