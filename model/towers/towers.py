"""CLIP's image towers as CCLNet uses them: one stem per modality, a shared trunk, and CLIP's own projection.

A tower has `stem(images, modality)`, `trunk(x)` -> (pooled, state), `project(state)`, `feature_dim` and `describe()`.
`CCLNet` gives it its `kind`, its name in model/towers/registry.py.
"""
import copy
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import UserError
from utils.modality import Modality

STRIDE = 16                      # of a ResNet's feature map with layer4 at stride 1
STEM = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")
ACTIVATION = "quick_gelu"        # x sigmoid(1.702 x), in the transformers of all of OpenAI's CLIPs


class ResNetTower(nn.Module):
    """CLIP's ModifiedResNet with two stems, layer4 at stride 1 and an attention pool for its map.

    Args:
        visual: `load_clip(...).visual`, any width and depth; copied.
        height, width: pixels of the images, multiples of 16; stride: 16 or None, it is a ResNet's own.
    Raises: UserError: another size or stride.
    """

    def __init__(self, visual, height, width, stride=None):
        super().__init__()
        if stride not in (None, STRIDE):
            raise UserError(f"MODEL.STRIDE is {stride}, but the CLIP weights hold a ResNet, whose feature map always "
                            f"has a stride of {STRIDE}. Leave MODEL.STRIDE out, or choose a vision transformer")
        for key, pixels in (("HEIGHT", height), ("WIDTH", width)):
            if pixels % STRIDE or pixels < STRIDE:
                raise UserError(f"INPUT.{key} is {pixels}; expected a multiple of {STRIDE}, the stride of a ResNet's "
                                "feature map")
        visual = copy.deepcopy(visual)
        self.height, self.width = height, width
        self.stems = nn.ModuleDict({m.value: copy.deepcopy(_sequence(visual, STEM)) for m in Modality})
        self.layers = _sequence(visual, ("layer1", "layer2", "layer3", "layer4"))
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
        return {"kind": self.kind, "height": self.height, "width": self.width, "stride": STRIDE,
                "heads": self.attnpool.heads}


class ViTTower(nn.Module):
    """CLIP's vision transformer with two patch convolutions, one per modality; everything behind them is shared.

    Args:
        visual: `load_clip(...).visual`, any width and depth; copied. Its position embedding is resized to the grid of
        patches here, once; the resized one is what learns and what checkpoints hold.
        height, width: pixels of the images; what is left of the last whole patch is not seen.
        stride: pixels from a patch to the next; smaller than a patch they overlap. None: the size of a patch.
    Raises: UserError: a stride that leaves gaps, or images smaller than a patch.
    """

    def __init__(self, visual, height, width, stride=None):
        super().__init__()
        visual = copy.deepcopy(visual)
        patch = visual.conv1.kernel_size[0]
        stride = patch if stride is None else stride
        if not 1 <= stride <= patch:
            raise UserError(f"MODEL.STRIDE is {stride}, but the patches of the vision transformer have {patch} pixels "
                            f"and none may be skipped; expected 1 to {patch}. Set MODEL.STRIDE {patch} for patches "
                            "that do not overlap")
        for key, pixels in (("HEIGHT", height), ("WIDTH", width)):
            if pixels < patch:
                raise UserError(f"INPUT.{key} is {pixels}; expected {patch} or more, the pixels of a patch")
        self.height, self.width, self.stride = height, width, stride
        visual.conv1.stride = (stride, stride)
        self.stems = nn.ModuleDict({m.value: copy.deepcopy(visual.conv1) for m in Modality})
        self.class_embedding, self.proj = visual.class_embedding, visual.proj
        self.positional_embedding = nn.Parameter(_resize_positions(
            visual.positional_embedding, *patch_grid(height, width, patch, stride)))
        self.ln_pre, self.transformer, self.ln_post = visual.ln_pre, visual.transformer, visual.ln_post

    @property
    def feature_dim(self):
        """D, the length of a pooled feature."""
        return len(self.class_embedding)

    def stem(self, images, modality):
        """Embed the patches of one modality: (B, 3, H, W) -> (B, D, rows, columns)."""
        return self.stems[Modality(modality).value](images)

    def trunk(self, x):
        """Run the transformer on what stems gave, all modalities as one batch.

        Returns: (B, D), the class token after the last norm; all tokens after it (B, 1 + rows * columns, D), for
        `project`. There is no generalised mean: the cube of a negative mean is no number to average.
        """
        patches = x.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.positional_embedding
        tokens = self.ln_post(self.transformer(self.ln_pre(tokens)))
        return tokens[:, 0].float(), tokens

    def project(self, tokens):
        """Project the class token: (B, E), CLIP's joint space with texts, not normalised."""
        return (tokens[:, 0] @ self.proj).float()

    def describe(self):
        """Return what the weights' shapes do not say."""
        return {"kind": self.kind, "height": self.height, "width": self.width, "stride": self.stride,
                "heads": self.transformer.resblocks[0].attn.num_heads, "activation": ACTIVATION}


def patch_grid(height, width, patch, stride):
    """Count the patches of an image: (rows, columns)."""
    return (height - patch) // stride + 1, (width - patch) // stride + 1


class Chain(nn.Sequential):
    """A `Sequential` that torch.compile takes as a whole: PyTorch 2.11 compiles torch.nn's own in pieces.

    Pieces have as many variants as a ResNet has kinds of blocks, and past eight PyTorch compiles no more.
    """

    def forward(self, x):
        """Call the parts in turn."""
        for part in self:
            x = part(x)
        return x


def _sequence(visual, names):
    """Chain parts of an image tower, which keep their names."""
    return Chain(OrderedDict((name, getattr(visual, name)) for name in names))


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
