"""AGW, the two-stream ResNet-50 of the field: torchvision's, layer4 at stride 1, with or without non-local blocks.

Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook" (TPAMI 2021). PGM and RPNR train it with
non-local blocks, ADCA and N-ULC without.
"""
import re
from collections import OrderedDict

import torch
from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import Bottleneck, conv1x1

from model.state_dict import check_state_dict, downloading, read_state_dict
from model.towers.clip_resnet import LAYERS, Chain, check_input
from model.towers.tower import Tower, blocks_of, generalised_mean
from utils.errors import UserError, quoted
from utils.seeding import torch_rng

IMAGENET = "imagenet"       # MODEL.CLIP_WEIGHTS for torchvision's own


class AGWPlain(Tower):
    """A ResNet of bottlenecks with two stems; a feature is the generalised mean of its map. There are no texts.

    Args: channels: of a stem (ResNet-50: 64); blocks: of each layer (ResNet-50: 3, 4, 6, 3); height, width: pixels of
        the images, multiples of 16; stride: 16 or None. Raises: UserError: another size or stride.
    """

    kind, untrained = "agw_plain", "ResNet-50 of ImageNet"
    non_local = {}          # layer -> how many of its last blocks have a non-local block behind them

    def __init__(self, channels, blocks, height, width, stride=None):
        check_input(height, width, stride)
        super().__init__(Chain(OrderedDict(
            conv1=nn.Conv2d(3, channels, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True), maxpool=nn.MaxPool2d(3, 2, 1))), height, width)
        inputs, self.layers = channels, Chain()
        for name, count, step, inner in zip(LAYERS, blocks, (1, 2, 2, 1), (channels * n for n in (1, 2, 4, 8))):
            layer, outputs = Chain(), Bottleneck.expansion * inner
            for number in range(count):
                shortcut = nn.Sequential(conv1x1(inputs, outputs, step), nn.BatchNorm2d(outputs))
                layer.add_module(str(number), Bottleneck(outputs, inner) if number else
                                 Bottleneck(inputs, inner, step, shortcut))
                if (place := number - count + self.non_local.get(name, 0)) >= 0:
                    layer.add_module(f"non_local_{place}", NonLocal(outputs))
            self.layers.add_module(name, layer)
            inputs = outputs

    @classmethod
    def load(cls, weights, *, height, width, name="", stride=None, seed=1):
        """Start from "imagenet", which torchvision downloads, or from a file with its names; as `Tower.load`."""
        if weights == "openai":
            raise UserError(f"MODEL.TOWER is {cls.kind}, but MODEL.CLIP_WEIGHTS is openai, a CLIP; set it to "
                            f'"{IMAGENET}", or to a file of a ResNet-50 with torchvision\'s names')
        if weights == IMAGENET:
            with downloading("the weights of ImageNet's ResNet-50", "set MODEL.CLIP_WEIGHTS to a file of them"):
                state = ResNet50_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True, weights_only=True)
        else:
            state = read_state_dict(weights)
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        first = state.get("conv1.weight")
        tower = cls(64 if first is None or first.dim() != 4 else len(first), _blocks(state), height, width, stride)
        own = tower.state_dict()
        theirs = {key: re.sub(r"^(stems\.\w+|layers)\.", "", key) for key in own if ".non_local_" not in key}
        state = {**{key: own[our] for our, key in theirs.items() if key.endswith("num_batches_tracked")}, **state}
        check_state_dict(state, {key: own[our] for our, key in theirs.items()}, f"the file {quoted(weights)}",
                         "Choose a ResNet-50 with torchvision's names, or another MODEL.TOWER")
        tower.load_state_dict({our: state[key] for our, key in theirs.items()}, strict=False)
        generator = torch_rng(seed, "tower", "agw")
        for part in tower.modules():
            if isinstance(part, NonLocal):
                part.draw(generator)
        tower.neck_weight = 1 + 0.01 * torch.randn(tower.feature_dim, generator=generator)
        return tower

    @classmethod
    def rebuild(cls, state, told):
        """Build an empty one of the sizes in a checkpoint."""
        return cls(len(state["stems.rgb.conv1.weight"]), _blocks(state, "layers."), told["height"], told["width"])

    @classmethod
    def recognises(cls, state):
        """Know torchvision's names, and its own, of which one kind has non-local blocks."""
        return "layer4.0.conv3.weight" in state or "layers.layer4.0.conv3.weight" in state and (
            bool(cls.non_local) == any(".non_local_" in name for name in state))

    @property
    def feature_dim(self):
        """D, the length of a pooled feature."""
        return self.layers.layer4[0].conv3.out_channels

    def trunk(self, x):
        """Run the shared layers: (B, D), the generalised mean of the map; nothing to project."""
        return generalised_mean(self.layers(x)), None


class AGW(AGWPlain):
    """The same with non-local blocks behind the last two blocks of layer2 and the last three of layer3."""

    kind, non_local = "agw", {"layer2": 2, "layer3": 3}


class NonLocal(nn.Module):
    """Adds to a map what its positions have in common, by one inner channel without a softmax; starts as the identity.

    Wang et al., "Non-local Neural Networks" (CVPR 2018). Position i is given theta_i times the mean over all positions
    of phi g; the released code sums theta_i phi_j g_j over j, which is the same. Names are the released ones.
    """

    def __init__(self, channels):
        super().__init__()
        self.theta, self.phi = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)
        self.g = nn.Sequential(nn.Conv2d(channels, 1, 1))
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.W[1].weight)

    def draw(self, generator):
        """Draw the convolutions as PyTorch does, from a generator."""
        for part in (self.theta, self.phi, self.g[0], self.W[0]):
            bound = part.in_channels ** -0.5
            for parameter in part.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x):
        """Return a map of the shape of x (B, C, H, W)."""
        common = (self.phi(x) * self.g(x)).mean(dim=(2, 3), keepdim=True)
        return x + self.W(self.theta(x) * common)


def _blocks(state, prefix=""):
    """Count the blocks of each layer in the names of a state dict; a layer that is missing counts as one."""
    return [max(1, blocks_of(state, f"{prefix}{layer}.")) for layer in LAYERS]
