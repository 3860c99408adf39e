"""CCLNet's network: a tower, a batch norm on its pooled output (the neck), and two heads."""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from utils.modality import Modality


class ImageEmbedding(NamedTuple):
    """Features and projections of a batch of images."""

    feature: torch.Tensor                   # (B, D), L2-normalised in evaluation mode
    projection: torch.Tensor | None = None  # (B, E), not normalised; None for a tower without texts


class CCLNet(nn.Module):
    """A network whose `feature` clusters, memories and retrieval use; its `projection` is compared with texts.

    Args:
        tower: of `model.towers.registry.load_tower`. For a checkpoint use `model.released.model_from_checkpoint`.

    Example:
        >>> tower = load_tower("assets/demo_clip.pt", height=96, width=48)
        >>> CCLNet(tower).feature_dim
        512
    """

    def __init__(self, tower):
        super().__init__()
        self.tower = tower
        self.neck = nn.BatchNorm1d(tower.feature_dim)
        self.neck.bias.requires_grad_(False)
        if tower.neck_weight is not None:
            self.neck.weight.data.copy_(tower.neck_weight)

    @property
    def feature_dim(self):
        """D, the length of a feature."""
        return self.tower.feature_dim

    def forward(self, rgb, ir, heads=("feature",)):
        """Embed a batch of both modalities; the trunk sees them as one batch, RGB first, so its batch norms see both.

        Args: rgb, ir: (B_rgb, 3, H, W), (B_ir, 3, H, W); heads: of "feature", "depths" (B, L, D), which are the L parts
            of features, never normalised, and "projection".
        Returns: {head: Modality -> (B, ·)}.
        """
        x = torch.cat([self.tower.stem(rgb, Modality.RGB), self.tower.stem(ir, Modality.IR)])
        return {head: dict(zip(Modality, rows.split([len(rgb), len(ir)])))
                for head, rows in self._heads(x, heads).items()}

    def encode(self, images, modality, heads=("feature",)):
        """Embed images of one modality: {head: (B, ·)}. Args: as `encode_image`; heads: as `forward`."""
        return self._heads(self.tower.stem(images, modality), heads)

    def encode_image(self, images, modality):
        """Embed images of one modality with all heads that the tower has.

        Args:
            images: (B, 3, height, width) float32 on the model's device, of the tower's height and width, normalised as
                in training: by `data.augment.normalise` from pixels in [0, 255]. Infrared images repeat their channel.
            modality: a `Modality`, "rgb" or "ir".

        Returns:
            `ImageEmbedding`: `feature` (B, D), for clustering and retrieval, of unit length after `model.eval()` and
            raw in training mode; `projection` (B, E), to be compared with texts, not normalised, None for a tower
            without texts.

        Raises:
            ValueError: the modality is unknown.
            RuntimeError: images of another size.

        Example:
            >>> from data.augment import normalise
            >>> model = CCLNet(load_tower("assets/demo_clip.pt", height=96, width=48)).eval()
            >>> pixels = torch.randint(0, 256, (2, 3, 96, 48), dtype=torch.uint8)
            >>> feature = model.encode_image(normalise(pixels), "rgb").feature
            >>> feature.shape, round(feature.norm(dim=1)[0].item(), 3)
            (torch.Size([2, 512]), 1.0)
        """
        return ImageEmbedding(**self.encode(images, modality,
                                            ("feature", "projection") if self.tower.has_text else ("feature",)))

    def _heads(self, x, heads):
        pooled, state = self.tower.trunk(x)
        out = {}
        if {"feature", "depths"} & {*heads}:
            feature = self.neck(pooled)
            out["feature"] = feature if self.training else F.normalize(feature, dim=1)
            out["depths"] = feature.unflatten(1, (self.tower.depths, -1))
        if "projection" in heads:
            out["projection"] = self.tower.project(state)
        return {head: out[head] for head in heads}

    def describe(self):
        """Return what the weights' shapes do not say (kind, size of the images, ...), for checkpoints."""
        return self.tower.describe()
