"""TransReID-SSL's vision transformer as the tower of SDCL: deep and shallow features.

Luo et al., "Self-Supervised Pre-Training for Transformer-Based Person Re-Identification" (2021): a stem of convolutions
with instance and batch norms (ICS) in place of patches. Yang et al., "Shallow-Deep Collaborative Learning for
Unsupervised Visible-Infrared Person Re-Identification" (CVPR 2024): two stems, and a second last block that sees the
patches before any block.
"""
import copy
import os
import re
from functools import partial

import torch
from torch import nn

from model.clip import HEAD_WIDTH, resize_positions
from model.state_dict import OTHER_WEIGHTS, check_state_dict, read_state_dict
from model.towers.tower import Tower, blocks_of, check_size
from utils.errors import UserError, quoted

PATCH = 16                                      # pixels of a token's side
TRAINED = (256, 128)                            # pixels of the images of which published weights have positions
DROP = 0.1                                      # stochastic depth of the last block in training; the first has 0
UNUSED = re.compile("head|dist|pre_logits|^fc[.]")   # in names of published weights that no feature depends on


class TransReID(Tower):
    """A vision transformer with two ICS stems; a feature is [deep, shallow], the class tokens of two last blocks.

    Args: width: D of a token, a multiple of 64; depth: of the blocks, the last of which is there twice;
        height, width_of_images: pixels, multiples of 16.
    """

    kind, untrained, depths = "transreid", "TransReID-SSL", 2
    landmarks = "patch_embed.conv.0.weight", "stems.rgb.conv.0.weight"

    def __init__(self, width, depth, height, width_of_images):
        from timm.models.vision_transformer import Block  # slow to import

        check_size(height, width_of_images, PATCH, "the pixels of a token")
        super().__init__(Stem(width), height, width_of_images)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width_of_images // PATCH ** 2, width))
        blocks = [Block(width, width // HEAD_WIDTH, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
        for block, rate in zip(blocks[1:], torch.linspace(0, DROP, depth)[1:].tolist()):
            block.drop_path1, block.drop_path2 = StochasticDepth(rate), StochasticDepth(rate)
        self.blocks = nn.ModuleList(blocks[:-1])
        self.deep = nn.Sequential(blocks[-1], norm(width))
        self.shallow = copy.deepcopy(self.deep)

    @classmethod
    def load(cls, weights, *, height, width, name="", stride=PATCH, seed=1):
        """Build the tower of TransReID-SSL's weights; arguments as `Tower.load`. It has no new layers.

        The position embedding of 16 x 8 patches is resized to the grid.
        """
        if stride not in (None, PATCH):
            raise UserError(f"MODEL.STRIDE is {stride}, but the stem of {cls.kind} has a token every {PATCH} pixels; "
                            "leave MODEL.STRIDE out")
        if not os.path.isfile(weights):
            raise UserError(f"weights {quoted(weights)} are missing; MODEL.TOWER {cls.kind} starts from a file of "
                            "TransReID-SSL such as vit_base_ics_cfs_lup.pth: set MODEL.CLIP_WEIGHTS to its path")
        state = {key: value for key, value in read_state_dict(weights).items() if not UNUSED.search(key)}
        sizes = state["norm.weight"].numel() if "norm.weight" in state else 0, blocks_of(state, "blocks.")
        if not all(sizes) or sizes[0] % HEAD_WIDTH:
            raise UserError(f"weights {quoted(weights)} are not those of MODEL.TOWER {cls.kind}: expected blocks and a "
                            f"norm of a multiple of {HEAD_WIDTH} numbers, under TransReID-SSL's names. {OTHER_WEIGHTS}")
        start = cls(*sizes, *TRAINED).state_dict()
        published = {name: _published(name, sizes[1]) for name in start}
        check_state_dict(state, {published[name]: value for name, value in start.items()},
                         f"the file {quoted(weights)}", OTHER_WEIGHTS)
        tower, grid = cls(*sizes, height, width), [pixels // PATCH for pixels in TRAINED]
        positions = resize_positions(state["pos_embed"][0].float(), height // PATCH, width // PATCH, grid)
        tower.load_state_dict({**{ours: state[theirs] for ours, theirs in published.items()},
                               "pos_embed": positions[None]})
        return tower

    @classmethod
    def rebuild(cls, state, told):
        """Build the tower of a checkpoint."""
        return cls(state["cls_token"].shape[-1], 1 + blocks_of(state, "blocks."), told["height"], told["width"])

    @property
    def feature_dim(self):
        """2 D, the length of a deep and a shallow feature."""
        return 2 * self.cls_token.shape[-1]

    def draw(self, rng, count, rows):
        """Draw which images skip which branches in the next training step."""
        for part in self.modules():
            if isinstance(part, StochasticDepth):
                part.draw(rng, count, rows)

    def trunk(self, x):
        """Run the blocks on what stems gave, (B, D, rows, columns): (B, 2 D), deep and shallow; None."""
        first = self.cls_token.expand(len(x), -1, -1)
        tokens = torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1) + self.pos_embed
        seen = tokens
        for block in self.blocks:
            seen = block(seen)
        mixed = torch.cat([seen[:, :1], tokens[:, 1:]], dim=1)
        return torch.cat([self.deep(seen)[:, 0], self.shallow(mixed)[:, 0]], dim=1).float(), None


def _published(name, depth):
    """Translate the name of a weight: "shallow.1.bias" -> "norm.bias", of which there are several here."""
    for start, theirs in ((r"stems\.\w+", "patch_embed"), (r"(deep|shallow)\.0", f"blocks.{depth - 1}"),
                          (r"(deep|shallow)\.1", "norm")):
        name = re.sub(rf"^{start}\.", f"{theirs}.", name)
    return name


class StochasticDepth(nn.Module):
    """Leaves a branch of a block out for some images in training (Huang et al., ECCV 2016). Args: rate: their share."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.factors = rate, None

    def draw(self, rng, count, rows):
        """Draw each image's factor, 0 or 1 / (1 - rate), as `Tower.draw`."""
        factors = (torch.rand(count, generator=rng) >= self.rate)[rows, None, None] / (1 - self.rate)
        if self.factors is None or len(self.factors) != len(factors):
            self.factors = factors
        else:
            self.factors.copy_(factors)     # in place, where a CUDA graph reads it

    def forward(self, x):
        """Multiply the branch of each image (B, T, D) with its factor; in evaluation mode, or undrawn, leave it."""
        if not self.training or self.factors is None:
            return x
        self.factors = self.factors.to(x.device)
        return x * self.factors.to(x.dtype)


class Stem(nn.Module):
    """The ICS stem: (B, 3, H, W) -> (B, D, H / 16, W / 16). Args: width: D."""

    def __init__(self, width):
        super().__init__()
        channels = 64
        conv = partial(nn.Conv2d, channels, channels, 3, padding=1, bias=False)
        self.conv = nn.Sequential(
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), HalfInstanceNorm(channels), nn.ReLU(),
            conv(), HalfInstanceNorm(channels), nn.ReLU(), conv(), nn.BatchNorm2d(channels), nn.ReLU())
        self.proj = nn.Conv2d(channels, width, PATCH // 2, stride=PATCH // 2)

    def forward(self, images):
        """Run it."""
        return self.proj(self.conv(images))


class HalfInstanceNorm(nn.Module):
    """IBN (Pan et al., ECCV 2018): instance norm for the first half of the channels, batch norm for the others."""

    def __init__(self, channels):
        super().__init__()
        self.IN, self.BN = nn.InstanceNorm2d(channels // 2, affine=True), nn.BatchNorm2d(channels // 2)

    def forward(self, x):
        """Normalise (B, C, H, W)."""
        first, second = x.chunk(2, dim=1)
        return torch.cat([self.IN(first), self.BN(second)], dim=1)
