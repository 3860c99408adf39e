"""The image side of CCLNet: two stems, one trunk, two heads."""
import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model.clip import build_image_tower
from utils.modality import Modality

STRIDE = 16                      # of the feature map, layer4 at stride 1


class ImageEmbedding(NamedTuple):
    """What the image side says of a batch."""

    feature: torch.Tensor        # (B, D), L2-normalised in evaluation mode
    projection: torch.Tensor     # (B, E), not normalised


class Stem(nn.Module):
    """The three first convolutions of a ModifiedResNet, copied: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    PARTS = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")

    def __init__(self, visual):
        super().__init__()
        for name in self.PARTS:
            self.add_module(name, copy.deepcopy(getattr(visual, name)))

    def forward(self, x):
        """Run the parts in turn."""
        for name in self.PARTS:
            x = getattr(self, name)(x)
        return x


class AttentionPool(nn.Module):
    """CLIP's attention pool, its position embedding resized to (rows, columns) of the map.

    Only the first token's query is computed: the others' outputs are never read.
    """

    def __init__(self, pool, rows, columns):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj
        self.heads = pool.num_heads
        self.positional_embedding = nn.Parameter(_resize_positions(pool.positional_embedding, rows, columns))

    def forward(self, feature_map):
        """(B, D, rows, columns) -> (B, E)."""
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding
        query, key, value = (
            project(t).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, t in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens)))
        pooled = F.scaled_dot_product_attention(query, key, value)      # (B, heads, 1, D / heads)
        return self.c_proj(pooled.flatten(1))


def _resize_positions(positions, rows, columns):
    """Bilinear resize (align_corners False) of a square grid's embedding; the first token is kept."""
    first, grid = positions.detach()[:1], positions.detach()[1:]
    side = round(len(grid) ** 0.5)
    grid = grid.T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([first, grid.flatten(2)[0].T])


class CCLNet(nn.Module):
    """Two stems (one per modality), one shared trunk, and the heads `feature` and `projection`.

    Args:
        visual: CLIP's ModifiedResNet (`load_clip(...).visual`), any width and depth; copied.
        height, width: pixels of the images.
    """

    def __init__(self, visual, height=288, width=144):
        super().__init__()
        visual = copy.deepcopy(visual)
        self.stems = nn.ModuleDict({m.value: Stem(visual) for m in Modality})
        self.trunk = nn.Sequential()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            self.trunk.add_module(name, getattr(visual, name))
        # The released code runs layer4 at stride 1: the average pools of its first block go, the weights stay.
        self.trunk.layer4[0].avgpool = nn.Identity()
        self.trunk.layer4[0].downsample[0] = nn.Identity()
        self.attnpool = AttentionPool(visual.attnpool, height // STRIDE, width // STRIDE)
        self.neck = nn.BatchNorm1d(self.feature_dim)
        self.neck.bias.requires_grad_(False)

    @classmethod
    def from_state_dict(cls, state, height, width):
        """A model of the sizes found in a state dict of this class, with its weights; needs no CLIP weights."""
        tower = {k.removeprefix("trunk."): v for k, v in state.items()}
        model = cls(build_image_tower(tower), height, width)
        model.load_state_dict(state)
        return model

    @property
    def feature_dim(self):
        """D, the length of a feature."""
        return self.attnpool.q_proj.in_features

    def feature_map(self, images, modality):
        """Images (B, 3, H, W) of one modality -> map (B, D, H/16, W/16)."""
        return self.trunk(self.stems[Modality(modality).value](images))

    def paired_map(self, rgb, ir):
        """The map (B_rgb + B_ir, D, H/16, W/16) of both modalities, RGB first.

        The trunk sees them as one batch, so its batch norms see both modalities.
        """
        return self.trunk(torch.cat([self.stems["rgb"](rgb), self.stems["ir"](ir)]))

    def feature(self, feature_map):
        """Batch norm of the generalised mean (p = 3) of the map: (B, D); L2-normalised in evaluation mode."""
        x = feature_map.float()
        pooled = ((x * x * x).mean(dim=(2, 3)) + 1e-12) ** (1 / 3)
        feature = self.neck(pooled)
        return feature if self.training else F.normalize(feature, dim=1)

    def projection(self, feature_map):
        """First token of the attention pool: (B, E), CLIP's joint space with texts, not normalised."""
        return self.attnpool(feature_map).float()

    def encode_image(self, images, modality):
        """`ImageEmbedding` of images (B, 3, H, W) of one modality ("rgb" or "ir")."""
        feature_map = self.feature_map(images, modality)
        return ImageEmbedding(self.feature(feature_map), self.projection(feature_map))
