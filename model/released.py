"""From a checkpoint's content to a model, and the released checkpoint format: our weights under its names."""
import math
import runpy
from pathlib import Path

import numpy as np
import torch

from model.cclnet import CCLNet
from model.clip import HEAD_WIDTH, TextTower, build_image_tower, tokenize
from model.prompt import LEARNED_WORDS, TEMPLATES, PromptLearner
from model.published import checkpoint_normalisation
from model.towers.registry import towers_for
from model.towers.towers import ACTIVATION, STRIDE, patch_grid
from utils.errors import UserError, explained, quoted
from utils.modality import Modality
from utils.structure import WEIGHTS, must_fit, table, tensor

# our prefix, released prefix, how the names behind it start (the released file holds whole, mostly unused copies)
MAPPING = (
    ("tower.stems.rgb.", "visible_module.visible.", ("conv", "bn")),
    ("tower.stems.ir.", "thermal_module.thermal.", ("conv", "bn")),
    ("tower.layers.", "base_resnet.base.", ("layer",)),
    ("tower.attnpool.", "base_resnet.base.attnpool.", ""),
    ("neck.", "bottleneck.", ""),
)
# Every released copy of CLIP's image tower, and the stem of ours that has the weights it starts from.
COPIES = (("thermal_module.thermal.", "tower.stems.ir."), ("visible_module.visible.", "tower.stems.rgb."),
          ("base_resnet.base.", "tower.stems.rgb."))
# Weights that every checkpoint in the released format has.
LANDMARKS = ("visible_module.visible.conv1.weight", "thermal_module.thermal.conv1.weight",
             "base_resnet.base.layer1.0.conv1.weight", "base_resnet.base.layer4.0.conv3.weight",
             "base_resnet.base.attnpool.positional_embedding", "bottleneck.weight")
# Names in checkpoints of this project's first version: its prefix, ours, how the names behind it start.
FIRST_NAMES = (("stems.", "tower.stems.", ""), ("trunk.", "tower.layers.", ""), ("attnpool.", "tower.attnpool.", ""))
# Weights by which the image side of a checkpoint is known, of either kind.
IMAGE_SIDES = (("tower.attnpool.positional_embedding", "tower.attnpool.q_proj.weight"),
               ("tower.class_embedding", "tower.positional_embedding", "tower.stems.rgb.weight"))
TEXT_PARTS = ("positional_embedding", "text_projection", "transformer.", "ln_final.")
RANKS = (1, 5, 10, 20)
LARGEST_SIDE = 10_000       # pixels of an image that a checkpoint may claim
STATE_DICT = table(tensor(dtype=WEIGHTS), least=1)


def model_from_checkpoint(content, path, height=None, width=None, stride=None, tower=""):
    """Build the `CCLNet` of a checkpoint's content (`utils.checkpoint.load_checkpoint`), in evaluation mode.

    The released format and the names of this project's first version are recognised. Kind and sizes are read from the
    weights, what these do not say from the checkpoint's description; CLIP's weights are not needed.

    Args: path: for messages; height, width: pixels of the images, stride: of the patches, tower: a name
        of `model.towers.registry.TOWERS`; None, "": the checkpoint's.
    Raises: UserError: the content is no checkpoint of an image side, or its sizes do not fit.
    """
    if height is None:
        height, width = checkpoint_size(content) or (None, None)
    if height is None:
        raise UserError(f"checkpoint {quoted(path)} does not say the size of its images; set INPUT.HEIGHT "
                        "and INPUT.WIDTH")
    state = _our_state(content, path)
    must_fit(state, STATE_DICT, f"checkpoint {quoted(path)}", "Train or download it again")
    kind, heads, own_stride = _described(content, state, path)
    for key, asked, own in (("STRIDE", stride, own_stride), ("TOWER", tower, kind)):
        if asked not in (None, "", own):
            raise UserError(f"checkpoint {quoted(path)} was trained with MODEL.{key} {own}, now it is {asked}. Use the "
                            "configuration of the training run")
    found, given = _map_cells(state, height, width, own_stride)
    if found != given:
        raise UserError(f"checkpoint {quoted(path)} was trained on images of {found} map cells; INPUT.HEIGHT {height} "
                        f"and INPUT.WIDTH {width} give {given}. Use the configuration of the training run")
    with explained(f"checkpoint {quoted(path)} does not fit together",
                   "expected the weights of one model. Train or download it again"):
        broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
        visual = build_image_tower({name.removeprefix("tower.layers.").removeprefix("tower."): value
                                    for name, value in state.items()}, heads)
        model = CCLNet(visual, height, width, own_stride, kind)
        model.load_state_dict(state)
    if broken:
        raise UserError(f"checkpoint {quoted(path)} holds NaN or Inf in {broken[0]}; expected finite weights. Train or "
                        "download it again")
    return model.eval()


def _described(content, state, path):
    """Return what shapes do not say: tower, heads and stride, inferred where an old checkpoint does not say them.

    Raises: UserError: the description is of another model than the weights.
    """
    vit = "tower.class_embedding" in state
    told = content.get("model") if isinstance(content.get("model"), dict) else {}
    size = len(state["tower.class_embedding"]) if vit else len(state["tower.attnpool.q_proj.weight"])
    patch = state["tower.stems.rgb.weight"].shape[-1] if vit else STRIDE
    facts = {"kind": "vit" if vit else "resnet", "heads": size // HEAD_WIDTH, "stride": patch,
             "activation": ACTIVATION if vit else None, **told}
    kinds = towers_for("vit" if vit else "resnet")
    expected = (("kind", f"{' or '.join(kinds)} (model/towers/registry.py)", facts["kind"] in kinds),
                ("heads", f"a divisor of {size}", _is_count(facts["heads"]) and size % facts["heads"] == 0),
                ("stride", f"1 to {patch}" if vit else STRIDE,
                 _is_count(facts["stride"]) and (facts["stride"] <= patch if vit else facts["stride"] == STRIDE)),
                ("activation", ACTIVATION, not vit or facts["activation"] == ACTIVATION))
    for name, right, fits in expected:
        if not fits:
            raise UserError(f"checkpoint {quoted(path)} describes its model with {name} {str(facts[name])[:40]}, but "
                            f"its weights need {right}. Train or download it again")
    return facts["kind"], facts["heads"], facts["stride"]


def _is_count(value):
    return type(value) is int and value >= 1


def _map_cells(state, height, width, stride):
    """Count the cells of the map that the weights were trained with, and those that images of a size give."""
    if "tower.class_embedding" not in state:
        return len(state["tower.attnpool.positional_embedding"]) - 1, (height // STRIDE) * (width // STRIDE)
    rows, columns = patch_grid(height, width, state["tower.stems.rgb.weight"].shape[-1], stride)
    return len(state["tower.positional_embedding"]) - 1, rows * columns


def checkpoint_size(content):
    """Find the size of a checkpoint's images: (height, width) in pixels, None if it does not say.

    From its description, its configuration or, in the released format, its position embedding.
    """
    released = released_state(content)
    config = content.get("config")
    told = [content.get("model"), config.get("INPUT") if isinstance(config, dict) else None]
    sizes = [released_input_size(released)] if released else [
        tuple(facts.get(key, facts.get(key.upper())) for key in ("height", "width"))
        for facts in told if isinstance(facts, dict)]
    for size in sizes:
        if size and all(type(pixels) is int and 0 < pixels < LARGEST_SIDE for pixels in size):
            return size
    return None


def _our_state(content, path):
    """The state dict of a checkpoint under our names. Raises: UserError: it holds no image side."""
    released = released_state(content)
    state = content.get("state_dict") if released is None else from_released(released)
    state = _renamed(state) if isinstance(state, dict) else {}
    if not any(all(isinstance(state.get(name), torch.Tensor) and state[name].ndim for name in names)
               for names in IMAGE_SIDES):
        raise UserError(f"checkpoint {quoted(path)} holds no image side (state_dict with stems, trunk and neck); "
                        "expected a file written by train_prepare.py or train_clip.py, or a released one")
    return state


def _renamed(state):
    """Translate names of this project's first version in a state dict to ours."""
    return {_translated(name, FIRST_NAMES) or name: value for name, value in state.items()}


def released_state(content):
    """Return the state dict of a checkpoint in the released format, without "module."; None for other content."""
    state = content.get("state_dict")
    if not isinstance(state, dict):
        return None
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    return state if any(name in state for name in LANDMARKS) else None


def released_name(our_name):
    """Translate a name of ours: "tower.layers.layer1.0.bn1.bias" -> "base_resnet.base.layer1.0.bn1.bias".

    Raises: KeyError: `CCLNet` has no such weight.
    """
    if (name := _translated(our_name, MAPPING)) is None:
        raise KeyError(our_name)
    return name


def our_name(released_name):
    """Our name of a released weight; None for those that the image side does not use."""
    return _translated(released_name, [(released, ours, starts) for ours, released, starts in MAPPING])


def _translated(name, mapping):
    """Replace the prefix of a weight's name; None for a name that is in no (prefix, new prefix, starts of the rest)."""
    for old, new, starts in mapping:
        rest = name.removeprefix(old)
        if rest != name and rest.startswith(starts):
            return new + rest
    return None


def from_released(state):
    """The state dict of a `CCLNet` in a released one (`released_state`); the rest is left out."""
    return {our_name(name): value for name, value in state.items() if our_name(name)}


def released_input_size(state):
    """(height, width) in pixels of the images of a released state dict; None where they are not 2 : 1."""
    positions = state.get("base_resnet.base.attnpool.positional_embedding")
    cells = len(positions) - 1 if isinstance(positions, torch.Tensor) and positions.dim() else 0
    columns = math.isqrt(max(cells, 0) // 2)
    return (2 * columns * STRIDE, columns * STRIDE) if cells > 0 and 2 * columns ** 2 == cells else None


def describe_released(content):
    """A sentence for the log: what of a released checkpoint is used, and the numbers that it states."""
    state = released_state(content)
    used = len(from_released(state))
    prompts = ", ".join(f"{len(state[name])} {m.value}" for m in Modality
                        if (name := f"prompt_learner.cls_ctx_{m.value}") in state and state[name].dim())
    stated = ", ".join(f"{label} {value:.4f}" for label, key in (("Rank-1", "cmc"), ("mAP", "mAP"), ("mINP", "mINP"))
                       if (value := first_number(content.get(key))) is not None)
    epoch = first_number(content.get("epoch"))
    return (f"released format, epoch {'unknown' if epoch is None else int(epoch)}, states {stated or 'no results'}; "
            f"{used} of its {len(state)} weights used (two stems, trunk, attention pool, neck), {len(state) - used} "
            f"ignored (unused copies, text encoder, prompts: {prompts or 'none'}); it does not say which data set or "
            "trial it was trained on")


def first_number(value):
    """The first entry of a number, an array or a list as a float; None if there is none."""
    try:
        number = float(np.ravel(value)[0])
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def to_released(content, clip, height, width):
    """The released format of one of our checkpoints: {"state_dict", "cmc", "mAP", "mINP", "epoch"}.

    What our training does not touch is CLIP's: the unused copies of the image tower and the text encoder. A
    checkpoint without prompts (train_prepare.py) gets one per modality, with CLIP's own embeddings of "X X X X".
    `cmc` has 20 ranks, NaN where the checkpoint does not store them.

    Args: content: of `load_checkpoint`; clip: the `open_clip.CLIP` that training began from; height, width: pixels.
    Raises: UserError: the CLIP weights have other sizes than the checkpoint, or the released code would make other
        features of its weights or its images.
    """
    trained = _renamed(content["state_dict"])
    if "tower.class_embedding" in trained:
        raise UserError("the checkpoint holds a vision transformer, and the released format knows ResNets alone; test "
                        "it with test.py, or export a run with a ResNet")
    for what, found, released in (("MODEL.TOWER", content.get("model", {}).get("kind", "resnet"), "resnet"),
                                  ("INPUT.NORMALISATION", checkpoint_normalisation(content), "imagenet")):
        if found != released:
            raise UserError(f"the checkpoint was trained with {what} {found}, and the released format knows {released} "
                            "alone; publish it with --safetensors, which tells what it is")
    start = {name: value.contiguous() for name, value in CCLNet(clip.visual, height, width).state_dict().items()}
    for name, value in trained.items():
        if name not in start or start[name].shape != value.shape:
            raise UserError(f"the CLIP weights have no {name} of shape {tuple(value.shape)} as the checkpoint does; "
                            "expected the CLIP that training began from. Name it with --clip_weights")
    state = {}
    for copy, stem in COPIES:
        state.update({copy + name.removeprefix(stem).removeprefix("tower.layers.").removeprefix("tower."): value
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
    """prompt_learner.*: the learned vectors (K, 4, W), and the other tokens' embeddings before and behind them."""
    text, state = TextTower(clip), {}
    for m in Modality:
        embedded = text.token_embedding(tokenize(TEMPLATES[m], text.context_length))       # (1, L, W)
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


if __name__ == "__main__":      # the command lies in tools/ now: `python -m model.released` keeps working
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "export_released.py"), run_name="__main__")
