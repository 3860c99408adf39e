"""From a checkpoint's content to a model, and the released formats: CCLNet's (a `ClipResNet`), that of PGM, RPNR, ADCA
and N-ULC (an `AGW`), and SDCL's (a `TransReID`). All are read, the first is written too."""
import math

import numpy as np
import torch

from model.cclnet import CCLNet
from model.clip import TextTower, load_clip, tokenize
from model.prompt import LEARNED_WORDS, TEMPLATES, PromptLearner
from model.published import checkpoint_normalisation
from model.state_dict import check_state_dict
from model.towers.clip_resnet import STRIDE, ClipResNet
from model.towers.registry import recognised, tower_class
from model.towers.tower import blocks_of
from utils.errors import UserError, explained, quoted
from utils.modality import Modality

# our prefix, released prefix, how the names behind it start (the released file holds whole, mostly unused copies)
MAPPING = (
    ("tower.layers.layer2.non_local_", "NL_2.", ""),
    ("tower.layers.layer3.non_local_", "NL_3.", ""),
    ("tower.stems.rgb.", "visible_module.visible.", ("conv", "bn")),
    ("tower.stems.ir.", "thermal_module.thermal.", ("conv", "bn")),
    ("tower.layers.", "base_resnet.base.", ("layer",)),
    ("tower.attnpool.", "base_resnet.base.attnpool.", ""),
    ("neck.", "bottleneck.", ""),
    # SDCL's; its necks of deep and shallow features are one here
    ("neck_shallow.", "bottlenecks.", ""),
    ("tower.stems.rgb.", "base.patch_embed.", ""),
    ("tower.stems.ir.", "base.patch_embed2.", ""),
    ("tower.deep.", "b1.", ""),
    ("tower.shallow.", "b2.", ""),
    ("tower.", "base.", ("cls_token", "pos_embed", "blocks.")),
)
# Every released copy of CLIP's image tower, and the stem of ours that has its weights.
COPIES = (("thermal_module.thermal.", "tower.stems.ir."), ("visible_module.visible.", "tower.stems.rgb."),
          ("base_resnet.base.", "tower.stems.rgb."))
# Weights that a checkpoint in a released format has.
LANDMARKS = ("visible_module.visible.conv1.weight", "thermal_module.thermal.conv1.weight",
             "base_resnet.base.layer1.0.conv1.weight", "base_resnet.base.layer4.0.conv3.weight",
             "base_resnet.base.attnpool.positional_embedding", "bottleneck.weight")
TEXT_PARTS = ("positional_embedding", "text_projection", "transformer.", "ln_final.")
RANKS = (1, 5, 10, 20)
SETTINGS = {"height": "INPUT.HEIGHT", "width": "INPUT.WIDTH", "stride": "MODEL.STRIDE", "kind": "MODEL.TOWER",
            "activation": "MODEL.ACTIVATION"}
AGW_SIZE = 288, 144         # of the images of released AGWs, which do not tell it
DAMAGED = "Train or download it again"


def model_from_checkpoint(content, path, height=None, width=None, stride=None, tower="", activation="auto"):
    """Build the `CCLNet` of a checkpoint of ours or a released one, in evaluation mode.

    Args:
        content: of `configs.checkpoint.read_checkpoint`; path: for messages;
        height, width, stride, tower, activation: INPUT.HEIGHT, INPUT.WIDTH, MODEL.STRIDE, MODEL.TOWER and
        MODEL.ACTIVATION of the configuration; None, "", "auto": the checkpoint's.
    Raises: UserError: the content is no checkpoint of an image side, was trained with other settings, or is damaged.

    Example:
        >>> from model.cclnet import CCLNet
        >>> trained = CCLNet(load_tower("assets/demo_clip.pt", height=96, width=48))
        >>> content = {"state_dict": trained.state_dict(), "model": trained.describe()}     # as in model_last.pth
        >>> model_from_checkpoint(content, "model_last.pth").training
        False
    """
    what = f"checkpoint {quoted(path)}"
    asked = {"height": height, "width": width, "stride": stride, "kind": tower, "activation": activation}
    asked = {key: value for key, value in asked.items() if value not in (None, "", "auto")}
    state, told = _our_state(content, what), content.get("model", {})
    of_tower = {name.removeprefix("tower."): value for name, value in state.items() if name.startswith("tower.")}
    chosen = (tower_class(told["kind"], f"MODEL.TOWER of {what}") if "kind" in told
              else recognised(of_tower, f"the weights of {what}", DAMAGED))
    told = {**chosen.unsaid, **told, "kind": chosen.kind}
    for key, value in asked.items():
        if told.get(key, value) != value:
            raise UserError(f"{what} was trained with {SETTINGS[key]} {told[key]}, now it is {value}. Use the "
                            "configuration of the training run")
    told = {**dict(zip(("height", "width"), checkpoint_size(content) or ())), **asked, **told}
    if "height" not in told:
        raise UserError(f"{what} does not say the size of its images; set INPUT.HEIGHT and INPUT.WIDTH")
    with explained(f"{what} does not fit together", f"expected a model of kind {chosen.kind}. {DAMAGED}"):
        model = CCLNet(chosen.rebuild(of_tower, told))
    check_state_dict(state, model.state_dict(), what, f"Use the INPUT.HEIGHT and INPUT.WIDTH of training. {DAMAGED}")
    model.load_state_dict(state)
    return model.eval()


def checkpoint_size(content):
    """Find the size of a checkpoint's images: (height, width) in pixels, None if it does not say.

    A released one says it by the number of its positions, if its images are 2 : 1.
    """
    state = released_state(content)
    if state is None:
        told = content.get("model", {})
        return (told["height"], told["width"]) if {"height", "width"} <= set(told) else None
    positions = state.get("base_resnet.base.attnpool.positional_embedding", state.get("base.pos_embed"))
    if positions is None:
        return AGW_SIZE if is_mirrored(state) else None
    cells = positions.shape[-2] - 1
    columns = math.isqrt(cells // 2)
    return (2 * columns * STRIDE, columns * STRIDE) if cells == 2 * columns ** 2 else None


def _our_state(content, what):
    """Return the state dict of a checkpoint under our names. Raises: UserError: it holds no image side."""
    released = released_state(content)
    state = content.get("state_dict") if released is None else from_released(released)
    if not isinstance(state, dict) or not any(str(name).startswith("tower.stems.") for name in state):
        raise UserError(f"{what} holds no image side (state_dict with stems, trunk and neck); expected a file written "
                        "by train_prepare.py or train_clip.py, or a released one")
    return state


def released_state(content):
    """Return the state dict of a checkpoint in the released format, without "module."; None for other content."""
    state = content.get("state_dict")
    if not isinstance(state, dict):
        return None
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    return state if any(name in state for name in (*LANDMARKS, "b2.1.weight")) else None      # the last: SDCL's


def released_name(our_name):
    """Translate a name of ours: "tower.layers.layer1.0.bn1.bias" -> "base_resnet.base.layer1.0.bn1.bias"."""
    return _translated(our_name, MAPPING)


def our_name(released_name):
    """Translate a released name to ours; None for the weights that the image side does not use."""
    return _translated(released_name, [(released, ours, starts) for ours, released, starts in MAPPING])


def _translated(name, mapping):
    for old, new, starts in mapping:
        if name.startswith(old) and (rest := name.removeprefix(old)).startswith(starts):
            return new + rest
    return None


def from_released(state):
    """Pick the state dict of a `CCLNet` out of a released one (`released_state`)."""
    found = {ours: state[name] for name, ours in used_weights(state).items()}
    for name in [name for name in found if name.startswith("neck_shallow.")]:
        value, joined = found.pop(name), name.replace("_shallow", "")
        if value.dim():
            found[joined] = torch.cat([found[joined], value])
    return found


def used_weights(state):
    """Name the weights of a released state dict that a `CCLNet` has: {released name: ours}."""
    unused = f"base.blocks.{blocks_of(state, 'base.blocks.') - 1}."     # b1 and b2 are trained in place of SDCL's last
    return {name: ours for name in state if (ours := our_name(name)) and not name.startswith(unused)}


def is_mirrored(state):
    """Tell a released AGW or SDCL (`released_state`), tested by means over mirror images, from a released CCLNet."""
    return not any("attnpool" in name or name.startswith("text_encoder.") for name in state)


def describe_released(content):
    """Say for the log what of a released checkpoint is used, and which numbers it states."""
    state = released_state(content)
    numbers = {label: first_number(content.get(key)) for label, key in (
        ("Rank-1", "cmc"), ("mAP", "mAP"), ("mINP", "mINP"), ("best mAP", "best_mAP"))}
    stated = ", ".join(f"{label} {number:.4f}" for label, number in numbers.items() if number is not None)
    return (f"released format, epoch {content.get('epoch', 'unknown')}, states {stated or 'no results'}; "
            f"{len(used_weights(state))} of its {len(state)} weights used (those of the image side); it does not say "
            "which data set or trial it was trained on")


def first_number(value):
    """Return the first entry of a number, an array or a list as a float; None if there is none, or NaN."""
    try:
        number = float(np.ravel(value)[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if math.isfinite(number) else None


def to_released(content, model, weights, name):
    """Write one of our checkpoints in the released format: {"state_dict", "cmc", "mAP", "mINP", "epoch"}.

    What our training does not touch is CLIP's: the unused copies of the image tower and the text encoder. `cmc` has 20
    ranks, NaN where the checkpoint does not store them.

    Args: content: of `load_checkpoint`; model: the `CCLNet` in it; weights, name: of the CLIP that training began from,
        as `model.clip.load_clip` takes them.
    Raises: UserError: the CLIP weights have other sizes than the checkpoint, or the released code would make other
        features of its weights or its images.
    """
    for what, found, released in (("MODEL.TOWER", model.tower.kind, ClipResNet.kind),
                                  ("INPUT.NORMALISATION", checkpoint_normalisation(content), "imagenet")):
        if found != released:
            raise UserError(f"the checkpoint was trained with {what} {found}, and the released format knows {released} "
                            "alone; publish it with --safetensors, which tells what it is")
    trained, clip = model.state_dict(), load_clip(weights, name)
    start = CCLNet(ClipResNet(clip.visual, model.tower.height, model.tower.width)).state_dict()
    check_state_dict(trained, start, "the checkpoint", "Name the CLIP that training began from with --clip_weights")
    state = {}
    for prefix, stem in COPIES:
        state.update({prefix + name.removeprefix(stem).removeprefix("tower.layers.").removeprefix("tower."): value
                      for name, value in start.items() if name.startswith((stem, "tower.layers.", "tower.attnpool."))})
    state.update(_released_prompts(content.get("prompts"), clip))
    state.update({f"text_encoder.{name}": value for name, value in clip.state_dict().items()
                  if name.startswith(TEXT_PARTS)})
    state.update({released_name(name): value.contiguous() for name, value in trained.items()})
    metrics = content.get("metrics", {})
    cmc = np.full(max(RANKS), np.nan)
    cmc[[rank - 1 for rank in RANKS]] = [metrics.get(f"rank{rank}", np.nan) for rank in RANKS]
    return {"state_dict": state, "cmc": cmc, "mAP": np.float64(metrics.get("mAP", np.nan)),
            "mINP": np.float64(metrics.get("mINP", np.nan)), "epoch": content.get("epoch", 0)}


def _released_prompts(prompts, clip):
    """Name prompt_learner.*: learned vectors (K, 4, W), and the other tokens' embeddings before and behind them.

    Without prompts (train_prepare.py) there is one per modality, with CLIP's own embeddings of "X X X X".
    """
    text, state = TextTower(clip), {}
    for m in Modality:
        embedded = text.token_embedding(tokenize(TEMPLATES[m], len(text.positional_embedding)))     # (1, L, W)
        first = len(PromptLearner(1, m, text).prefix)
        last = first + LEARNED_WORDS
        context = prompts[m.value]["context"] if prompts else embedded[:, first:last]
        if context.shape[2] != embedded.shape[2]:
            raise UserError(f"the checkpoint's prompts are {context.shape[2]} wide, the CLIP weights' text tower "
                            f"{embedded.shape[2]}; expected the CLIP that training began from. Name it with "
                            "--clip_weights")
        for part, value in (("cls_ctx", context), ("token_prefix", embedded[:, :first]),
                            ("token_suffix", embedded[:, last:])):
            state[f"prompt_learner.{part}_{m.value}"] = value.detach().contiguous()
    return state
