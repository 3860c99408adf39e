"""CLIP's ModifiedResNet as CCLNet's tower: that of the released code."""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from model.clip import HEAD_WIDTH, ClipTower, resize_positions
from model.towers.tower import blocks_of, check_size, generalised_mean
from utils.errors import UserError

STRIDE = 16                      # of the feature map, with layer4 at stride 1
STEM = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")
LAYERS = ("layer1", "layer2", "layer3", "layer4")


class ClipResNet(ClipTower):
    """CLIP's ModifiedResNet with two stems, layer4 at stride 1 and an attention pool for its map.

    Args:
        visual: `load_clip(...).visual`, any width and depth; its modules are used, not copied.
        height, width: pixels of the images, multiples of 16; stride: 16 or None, it is a ResNet's own.
    Raises: UserError: another size or stride.
    """

    kind, landmarks = "clip_resnet", ("visual.attnpool.c_proj.weight", "attnpool.c_proj.weight")

    def __init__(self, visual, height, width, stride=None):
        check_input(height, width, stride)
        super().__init__(_chain(visual, STEM), height, width)
        self.layers = _chain(visual, LAYERS)
        # The released code runs layer4 at stride 1: the average pools of its first block go, the weights stay.
        self.layers.layer4[0].avgpool = nn.Identity()
        self.layers.layer4[0].downsample[0] = nn.Identity()
        self.attnpool = AttentionPool(visual.attnpool, height // STRIDE, width // STRIDE)

    @classmethod
    def rebuild(cls, state, told):
        """Build the tower of a checkpoint; where it does not say its heads, they are 64 wide, as OpenAI's."""
        from open_clip.modified_resnet import ModifiedResNet  # slow to import

        width = len(state["layers.layer1.0.conv1.weight"])
        visual = ModifiedResNet([blocks_of(state, f"layers.{layer}.") for layer in LAYERS],
                                output_dim=len(state["attnpool.c_proj.weight"]),
                                heads=told.get("heads", width * 32 // HEAD_WIDTH), width=width)
        return cls(visual, told["height"], told["width"], told.get("stride"))

    @property
    def feature_dim(self):
        """D, the length of a pooled feature."""
        return self.attnpool.q_proj.in_features

    def trunk(self, x):
        """Run the shared layers on what stems gave, (B, C, H/4, W/4).

        Returns: (B, D), the generalised mean (p = 3) of the map; the map (B, D, H/16, W/16), for `project`.
        """
        feature_map = self.layers(x)
        return generalised_mean(feature_map), feature_map

    def project(self, feature_map):
        """Return the first token of the attention pool: (B, E), CLIP's joint space with texts, not normalised."""
        return self.attnpool(feature_map).float()

    def describe(self):
        """Return what the weights' shapes do not say."""
        return {**super().describe(), "stride": STRIDE, "heads": self.attnpool.heads}


def check_input(height, width, stride):
    """Refuse what does not suit the map of a ResNet. Raises: UserError: sizes off its stride, or another stride."""
    if stride not in (None, STRIDE):
        raise UserError(f"MODEL.STRIDE is {stride}, but the weights hold a ResNet, whose feature map always "
                        f"has a stride of {STRIDE}. Leave MODEL.STRIDE out, or choose a vision transformer")
    check_size(height, width, STRIDE, "the stride of a ResNet's feature map")


class Chain(nn.Sequential):
    """A `Sequential` that torch.compile takes as a whole: PyTorch 2.11 compiles torch.nn's own in pieces.

    Pieces have as many variants as a ResNet has kinds of blocks, and past eight PyTorch compiles no more.
    """

    def forward(self, x):
        """Call the parts in turn."""
        for part in self:
            x = part(x)
        return x


def _chain(visual, names):
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
        self.positional_embedding = nn.Parameter(resize_positions(pool.positional_embedding, rows, columns))

    def forward(self, feature_map):
        """Pool a map (B, D, rows, columns): (B, E)."""
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding
        query, key, value = (
            project(t).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, t in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens)))
        pooled = F.scaled_dot_product_attention(query, key, value)      # (B, heads, 1, D / heads)
        return self.c_proj(pooled.flatten(1))
