"""What an image tower is: a stem per modality, a trunk that both share, and the weights that it starts from."""
import copy

import torch
from torch import nn

from utils.errors import UserError
from utils.modality import Modality


class Tower(nn.Module):
    """Turns images into pooled features. A tower is a subclass in a file of its own, and an entry of `TOWERS`.

    A subclass gives `kind`, `load`, `rebuild`, `trunk` and `feature_dim`; with texts also `has_text` and `project`.

    Args: stem: the first layers, copied for each modality; the copies learn apart. height, width: pixels of the images.
    """

    kind = ""                   # its name in TOWERS, in MODEL.TOWER and in checkpoints
    untrained = "no training"   # what results call a network with the weights that `load` gives
    landmarks = ()              # names of weights that it alone has, in a file for `load` or in a checkpoint
    unsaid = {}                 # what `describe` would have said where a checkpoint does not say it
    depths = 1                  # parts of a feature: 2 where its halves are deep and shallow ones
    neck_weight = None          # (D,) that the batch norm behind the tower starts from; None: ones
    has_text = False            # whether `project` leads to a space of texts, which train_clip.py needs

    def __init__(self, stem, height, width):
        super().__init__()
        self.stems = nn.ModuleDict({m.value: copy.deepcopy(stem) for m in Modality})
        self.height, self.width = height, width

    @classmethod
    def load(cls, weights, *, height, width, name="", stride=None, seed=1):
        """Build a tower that starts from weights.

        Args:
            weights: a file (`model.state_dict.read_state_dict`), or a word that the tower knows, such as "openai";
            height, width: pixels of the images; name: of one of several weights under that word (MODEL.NAME);
            stride: pixels between patches (MODEL.STRIDE), for towers that have a choice;
            seed: of layers that the weights do not hold: draw them from `utils.seeding.torch_rng(seed, "tower", ...)`;
            activation: MODEL.ACTIVATION, given where it is not "auto"; for CLIP's towers alone.
        Raises: UserError: names or shapes differ from the tower's (`check_state_dict`), or the sizes do not suit it.
        """
        raise NotImplementedError

    @classmethod
    def rebuild(cls, state, told):
        """Build an empty tower of the sizes in a checkpoint, which then loads the checkpoint's weights.

        Args: state: the tower's state dict in the checkpoint, of which nothing was checked; told: what `describe` said.
        Raises: anything: the two are of no tower of this kind.
        """
        raise NotImplementedError

    @classmethod
    def recognises(cls, state):
        """Tell by its names whether a state dict is of this kind: a file for `load`, or a checkpoint without a kind."""
        return any(name in state for name in cls.landmarks)

    def stem(self, images, modality):
        """Run the first layers of one modality. Args: images: (B, 3, height, width); modality: or "rgb", "ir"."""
        return self.stems[Modality(modality).value](images)

    def draw(self, rng, count, rows):
        """Draw what the network needs at random in the next training step; most need nothing.

        Args: rng: of the step, the same in all processes; count: images of the whole batch; rows: those that this
            process embeds, visible ones first.
        """

    def trunk(self, x):
        """Run the shared layers on what stems gave, all modalities as one batch.

        Returns: (B, feature_dim) float32, the pooled features; whatever `project` needs.
        """
        raise NotImplementedError

    def project(self, state):
        """Return (B, E) float32 in the space of the texts, not normalised. Args: state: the second that `trunk` gave.

        Raises: UserError: the tower has no texts.
        """
        raise UserError(f"MODEL.TOWER {self.kind} has no texts and so no projections; train it with train_prepare.py "
                        "alone, or choose a tower of CLIP")

    @property
    def feature_dim(self):
        """D, the length of a pooled feature."""
        raise NotImplementedError

    def describe(self):
        """Return what the weights' shapes do not say, for checkpoints and `rebuild`."""
        return {"kind": self.kind, "height": self.height, "width": self.width}


def blocks_of(state, start):
    """Count the numbered parts of a network in its state dict: those behind `start` in the names of weights."""
    numbers = {name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)}
    return sum(number.isdigit() for number in numbers)


def check_size(height, width, unit, what):
    """Raise UserError where the pixels of the images are no multiples of a unit. Args: what: the unit, in words."""
    for key, pixels in (("HEIGHT", height), ("WIDTH", width)):
        if pixels % unit or pixels < unit:
            raise UserError(f"INPUT.{key} is {pixels}; expected a multiple of {unit}, {what}")


def generalised_mean(feature_map):
    """Pool a map (B, D, H, W): (B, D) float32, or float64 of such a map, the generalised mean with p = 3."""
    x = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
    return ((x * x * x).mean(dim=(2, 3)) + 1e-12) ** (1 / 3)
