"""SDCL: contrasts of deep and shallow features, neighbours among single images, unified labels.

Yang et al., "Shallow-Deep Collaborative Learning for Unsupervised Visible-Infrared Person Re-Identification" (CVPR
2024).
"""
import copy

import torch
import torch.nn.functional as F

from loss.cluster_memory import ClusterMemory, cosine_logits, move
from loss.unify import DEPTHS, Unify
from utils.modality import Modality
from utils.runtime import to_device
from utils.settings import Range, Setting

# Released numbers: what the neighbours of an image are more similar to it than, as a share of the largest similarity;
# share of an image's old row in a renewal; least probability in a logarithm.
SIMILAR, IMAGE_MOMENTUM, LEAST = 0.9, 0.9, 1e-8
# Their weights: within a modality and across, before labels are unified and from then on; of visible images among
# infrared ones; of the shallow depth.
BEFORE, UNIFIED, VISIBLE, OF_DEPTH = (1.0, 0.5), (0.1, 0.1), 0.1, (1.0, 0.5)


class SDCL(Unify):
    """Cluster memories of each depth, and memories of single images whose neighbours are found by both depths.

    From METHOD.CROSS_EPOCH on images are drawn to their neighbours in the other modality, from METHOD.UNIFY_EPOCH on
    labels are unified. A batch holds two views of each visible image.
    """

    SETTINGS = (Setting("INTRA_EPOCH", 1, Range(1, whole=True), "first epoch that draws images to their neighbours in "
                        "their own modality"),
                Setting("UNIFY_EPOCH", 31, Range(1, whole=True), "first epoch with unified labels"),
                Setting("UNIFY_FROM", "last", ("last", "released"), "weights with which UNIFY_EPOCH begins: the last "
                        "ones, or those that were best on test data so far, as in the released code"))
    views, mirrored, depths = 2, True, 2

    @property
    def best_epoch(self):
        """The epoch that begins with the weights which were best on test data so far; None: there is none."""
        return self.settings.unify_epoch if self.settings.unify_from == "released" else None

    def unifies(self, epoch):
        """Tell whether the labels of an epoch share one range."""
        return epoch >= self.settings.unify_epoch

    def start(self, start, epoch):
        """Begin an epoch as `Unify`, and with memories of all images, outliers too."""
        self.images = {m.value + depth: ImageMemory(x, self.settings.temperature, IMAGE_MOMENTUM)
                       for m in Modality for depth, x in zip(DEPTHS, start.features["depths"][m].unbind(1))}
        return super().start(start, epoch)

    def losses(self, features, batch):
        """Compute the losses of `Unify`, and of neighbours {"near_rgb_rgb", "near_ir_ir", ...}, first whose batch."""
        losses, rows, memories = super().losses(features, batch), self.by_depth(features), self.images
        if self.settings.gradients == "released":       # renewed before the backward pass
            memories = copy.deepcopy(self.images)
            self._renew(memories, rows, batch)
        for m, side, weight in self.pairs():
            near = self.neighbours(m, side, batch.positions[m])
            for depth, share in zip(DEPTHS[:self.split], OF_DEPTH):
                losses[f"near_{m.value}_{side.value}{depth}"] = weight * share * memories[side.value + depth].loss(
                    rows[m.value + depth], near, self.images[side.value + depth])
        return losses

    def pairs(self):
        """List whose images are drawn to their neighbours of which modality in this epoch, and the weight of that."""
        s, (within, across) = self.settings, UNIFIED if self.linked else BEFORE
        found = [(m, m, within) for m in Modality] if self.epoch >= s.intra_epoch else []
        if self.epoch >= s.cross_epoch:
            odd = (self.epoch - s.cross_epoch) % 2
            found.append((Modality.IR, Modality.RGB, across) if odd else (Modality.RGB, Modality.IR, VISIBLE * across))
        return found

    def neighbours(self, modality, side, positions):
        """Find the neighbours of images among those of a side, by all depths: (B, N) bool. Args: positions: (B,)."""
        near = True
        for depth in DEPTHS[:self.split]:
            own, others = (self.images[m.value + depth].prototypes for m in (modality, side))
            cosines = own[to_device(positions, own.device)] @ others.T
            near = (cosines > SIMILAR * cosines.amax(dim=1, keepdim=True)) & near
        return near

    def update(self, features, batch):
        """Move the prototypes to the batch, and the images' rows."""
        self._renew(self.images, self.by_depth(features), batch)
        return super().update(features, batch)

    def _renew(self, memories, rows, batch):
        for m in Modality:
            for depth in DEPTHS[:self.split]:
                memories[m.value + depth].update(rows[m.value + depth], batch.positions[m])


class ImageMemory(ClusterMemory):
    """A row of unit length per image of a modality. Args: as `ClusterMemory`."""

    def loss(self, x, near, before):
        """Compute the mean over rows of the sum of -log p over their neighbours, by the number of these and 1.

        Args: x: (B, D) of any length; near: (B, N) bool; before: `ImageMemory`, of which p is the softmax over all
            images; the gradient multiplies the rows of this one.
        """
        logits = cosine_logits(F.normalize(x.float(), dim=1), self.prototypes, self.temperature, before.prototypes)
        logarithm = torch.log(logits.softmax(dim=1).clamp(min=LEAST))
        return (-(logarithm * near).sum(dim=1) / (near.sum(dim=1) + 1)).mean()

    def update(self, x, positions):
        """Mix rows with features as long as they are, which nearly replace a row of unit length."""
        move(self.prototypes, x.detach().float(), positions, self.momentum)
