"""The towers by name: MODEL.TOWER, and the kind that a checkpoint tells."""
import difflib

from model.state_dict import read_state_dict
from model.towers.agw import AGW, IMAGENET, AGWPlain
from model.towers.clip_resnet import ClipResNet
from model.towers.clip_vit import ClipViT
from model.towers.transreid import TransReID
from utils.errors import UserError, quoted

TOWERS = {tower.kind: tower for tower in (ClipResNet, ClipViT, AGW, AGWPlain, TransReID)}     # a project adds its own
FORMER_KINDS = {"resnet": "clip_resnet", "vit": "clip_vit"}         # as earlier checkpoints call them


def tower_class(kind, what="MODEL.TOWER"):
    """Return the class of a tower. Args: what: names it, for the message. Raises: UserError: there is none."""
    kind = FORMER_KINDS.get(str(kind), str(kind))
    if kind not in TOWERS:
        near = difflib.get_close_matches(kind, TOWERS, 1)
        raise UserError(f"{what} is {kind[:80]}{f'; did you mean {near[0]}?' if near else ''}; expected "
                        f"{' or '.join(TOWERS)}. Import the module that adds another to model.towers.registry.TOWERS")
    if TOWERS[kind].kind != kind:       # checkpoints would tell another tower
        raise ValueError(f"TOWERS has {TOWERS[kind].__name__} as {kind}, but its `kind` is {TOWERS[kind].kind!r}")
    return TOWERS[kind]


def recognised(state, what, advice):
    """Find the tower to which a state dict belongs. Raises: UserError: it is none's: WHAT ...; ADVICE."""
    for tower in TOWERS.values():
        if tower.recognises(state):
            return tower
    raise UserError(f"{what} belong to no tower that is known ({', '.join(TOWERS)}); {advice}")


def load_tower(weights="openai", tower="", name="RN50", *, height, width, stride=None, seed=1, activation="auto"):
    """Build a tower that starts from weights.

    Args:
        weights: a file, "openai" or "imagenet" (MODEL.CLIP_WEIGHTS);
        tower: a name of `TOWERS` (MODEL.TOWER); "": that of the weights; name: which of OpenAI's CLIPs (MODEL.NAME);
        height, width: pixels of the images; stride: pixels between the patches of a transformer;
        seed: of layers that the weights do not hold; activation: of CLIP's transformers (MODEL.ACTIVATION).
    Returns: `Tower`, on the host, in fp32.
    Raises: UserError: there is no such tower, or the weights are not its own.

    Example:
        >>> load_tower("assets/demo_clip.pt", height=96, width=48).describe()["kind"]
        'clip_resnet'
    """
    if tower:
        chosen = tower_class(tower)
    elif weights == "openai":
        chosen = ClipViT if name.startswith("ViT") else ClipResNet
    elif weights == IMAGENET:
        chosen = AGW
    else:
        chosen = recognised(read_state_dict(weights), f"weights {quoted(weights)}",
                            "set MODEL.TOWER, or choose other weights")
    if activation != "auto" and not chosen.has_text:
        raise UserError(f"MODEL.ACTIVATION is {activation}, but MODEL.TOWER {chosen.kind} is no CLIP; leave it out")
    return chosen.load(weights, height=height, width=width, name=name, stride=stride, seed=seed,
                       **({} if activation == "auto" else {"activation": activation}))
