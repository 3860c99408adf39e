"""CLIP's image towers as CCLNet uses them: one stem per modality, a shared trunk, and CLIP's own projection.

A tower has `stem(images, modality)`, `trunk(x)` -> (pooled, state), `project(state)`, `feature_dim` and `describe()`.
"""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from utils.modality import Modality

STRIDE = 16                      # of a ResNet's feature map with layer4 at stride 1
STEM = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")


class ResNetTower(nn.Module):
    """CLIP's ModifiedResNet with two stems, layer4 at stride 1 and an attention pool for its map.

    Args:
        visual: `load_clip(...).visual`, any width and depth; copied.
        height, width: pixels of the images.
    """

    def __init__(self, visual, height, width):
        super().__init__()
        visual = copy.deepcopy(visual)
        self.height, self.width = height, width
        self.stems = nn.ModuleDict({m.value: Stem(visual) for m in Modality})
        self.layers = nn.Sequential()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            self.layers.add_module(name, getattr(visual, name))
        # The released code runs layer4 at stride 1: the average pools of its first block go, the weights stay.
        self.layers.layer4[0].avgpool = nn.Identity()
        self.layers.layer4[0].downsample[0] = nn.Identity()
        self.attnpool = AttentionPool(visual.attnpool, height // STRIDE, width // STRIDE)

    @property
    def feature_dim(self):
        """D, the length of a pooled feature."""
        return self.attnpool.q_proj.in_features

    def stem(self, images, modality):
        """Run the first convolutions of one modality: (B, 3, H, W) -> (B, C, H/4, W/4)."""
        return self.stems[Modality(modality).value](images)

    def trunk(self, x):
        """Run the shared layers on what stems gave, all modalities as one batch.

        Returns: (B, D), the generalised mean (p = 3) of the map; the map (B, D, H/16, W/16), for `project`.
        """
        feature_map = self.layers(x)
        x = feature_map.float()
        return ((x * x * x).mean(dim=(2, 3)) + 1e-12) ** (1 / 3), feature_map

    def project(self, feature_map):
        """Return the first token of the attention pool: (B, E), CLIP's joint space with texts, not normalised."""
        return self.attnpool(feature_map).float()

    def describe(self):
        """Return what the weights' shapes do not say."""
        return {"kind": "resnet", "height": self.height, "width": self.width, "stride": STRIDE,
                "heads": self.attnpool.heads}


class Stem(nn.Module):
    """The three first convolutions of a ModifiedResNet, copied: (B, 3, H, W) -> (B, C, H/4, W/4)."""

    def __init__(self, visual):
        super().__init__()
        for name in STEM:
            self.add_module(name, copy.deepcopy(getattr(visual, name)))

    def forward(self, x):
        """Run the parts in turn."""
        for name in STEM:
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
        """Pool a map (B, D, rows, columns): (B, E)."""
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding
        query, key, value = (
            project(t).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, t in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens)))
        pooled = F.scaled_dot_product_attention(query, key, value)      # (B, heads, 1, D / heads)
        return self.c_proj(pooled.flatten(1))


def _resize_positions(positions, rows, columns):
    """Resize a square grid's embedding bilinearly (align_corners False); the first token is kept."""
    first, grid = positions.detach()[:1], positions.detach()[1:]
    side = round(len(grid) ** 0.5)
    grid = grid.T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([first, grid.flatten(2)[0].T])
