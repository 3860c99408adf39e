"""The image side of CCLNet: a tower of CLIP, a neck, and two heads."""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.towers.registry import choose_tower, tower_class
from utils.modality import Modality


class ImageEmbedding(NamedTuple):
    """Features and projections of a batch of images."""

    feature: torch.Tensor        # (B, D), L2-normalised in evaluation mode
    projection: torch.Tensor     # (B, E), not normalised


class CCLNet(nn.Module):
    """A tower with one stem per modality, and a batch norm on its pooled output (the neck).

    `feature` is what clusters, memories and retrieval use; `projection` lies in CLIP's joint space with texts.

    Args:
        visual: CLIP's image tower (`load_clip(...).visual`), copied; height, width: pixels of the images;
        stride: pixels from a patch of a vision transformer to the next; None: the tower's own;
        tower: a name of `model.towers.registry.TOWERS`; "": that of the weights' kind.
    Raises: UserError: the tower cannot have these weights, images of this size or this stride.
    """

    def __init__(self, visual, height, width, stride=None, tower=""):
        super().__init__()
        kind = choose_tower(visual, tower)
        self.tower = tower_class(kind)(visual, height, width, stride)
        self.tower.kind = kind
        self.neck = nn.BatchNorm1d(self.tower.feature_dim)
        self.neck.bias.requires_grad_(False)

    @property
    def feature_dim(self):
        """D, the length of a feature."""
        return self.tower.feature_dim

    def forward(self, rgb, ir, heads=("feature",)):
        """Embed a batch of both modalities; the trunk sees them as one batch, RGB first, so its batch norms see both.

        Args: rgb, ir: (B_rgb, 3, H, W), (B_ir, 3, H, W); heads: of "feature" and "projection".
        Returns: {head: Modality -> (B, ·)}; features are L2-normalised in evaluation mode.
        """
        x = torch.cat([self.tower.stem(rgb, Modality.RGB), self.tower.stem(ir, Modality.IR)])
        return {head: dict(zip(Modality, rows.split([len(rgb), len(ir)])))
                for head, rows in self._heads(x, heads).items()}

    def encode(self, images, modality, heads=("feature", "projection")):
        """Embed images (B, 3, H, W) of one modality: {head: (B, ·)}; arguments as `forward`."""
        return self._heads(self.tower.stem(images, modality), heads)

    def encode_image(self, images, modality):
        """Embed images (B, 3, H, W) of one modality ("rgb" or "ir"): `ImageEmbedding`."""
        return ImageEmbedding(**self.encode(images, modality))

    def _heads(self, x, heads):
        pooled, state = self.tower.trunk(x)
        out = {}
        if "feature" in heads:
            feature = self.neck(pooled)
            out["feature"] = feature if self.training else F.normalize(feature, dim=1)
        if "projection" in heads:
            out["projection"] = self.tower.project(state)
        return out

    def parameters_without(self, heads):
        """Name the trained parameters on which no output of some heads depends: autograd tells, from blank images."""
        names, parameters = zip(*((name, p) for name, p in self.named_parameters() if p.requires_grad))
        size, was_training = self.describe(), self.training
        blank = parameters[0].new_zeros(1, 3, size["height"], size["width"])
        self.eval()
        out = self(blank, blank, heads)
        gradients = torch.autograd.grad(sum(rows.sum() for head in out.values() for rows in head.values()), parameters,
                                        allow_unused=True)
        self.train(was_training)
        return [name for name, gradient in zip(names, gradients) if gradient is None]

    def describe(self):
        """Return what the weights' shapes do not say (kind, size of the images, stride, heads), for checkpoints."""
        return self.tower.describe()
