"""The released checkpoint format: our weights under its names, read and written."""
import math
import runpy
from pathlib import Path

import numpy as np

from model.cclnet import STRIDE, CCLNet
from model.clip import TextTower, tokenize
from model.prompt import LEARNED_WORDS, TEMPLATES, PromptLearner
from utils.checkpoint import released_state
from utils.errors import UserError
from utils.modality import Modality

# our prefix, released prefix, how the names behind it start (the released file holds whole, mostly unused copies)
MAPPING = (
    ("stems.rgb.", "visible_module.visible.", ("conv", "bn")),
    ("stems.ir.", "thermal_module.thermal.", ("conv", "bn")),
    ("trunk.", "base_resnet.base.", ("layer",)),
    ("attnpool.", "base_resnet.base.attnpool.", ("",)),
    ("neck.", "bottleneck.", ("",)),
)
# Every released copy of CLIP's image tower, and the stem of ours that has the weights it starts from.
COPIES = (("thermal_module.thermal.", "stems.ir."), ("visible_module.visible.", "stems.rgb."),
          ("base_resnet.base.", "stems.rgb."))
TEXT_PARTS = ("positional_embedding", "text_projection", "transformer.", "ln_final.")
RANKS = (1, 5, 10, 20)


def released_name(our_name):
    """The released name of one of our weights: "trunk.layer1.0.bn1.bias" -> "base_resnet.base.layer1.0.bn1.bias".

    Raises: KeyError: `CCLNet` has no such weight.
    """
    for ours, released, starts in MAPPING:
        rest = our_name.removeprefix(ours)
        if rest != our_name and rest.startswith(starts):
            return released + rest
    raise KeyError(our_name)


def our_name(released_name):
    """Our name of a released weight; None for those that the image side does not use."""
    for ours, released, starts in MAPPING:
        rest = released_name.removeprefix(released)
        if rest != released_name and rest.startswith(starts):
            return ours + rest
    return None


def from_released(state):
    """The state dict of a `CCLNet` in a released one (`utils.checkpoint.released_state`); the rest is left out."""
    return {our_name(name): value for name, value in state.items() if our_name(name)}


def released_input_size(state):
    """(height, width) in pixels of the images of a released state dict; None where they are not 2 : 1."""
    cells = len(state.get("base_resnet.base.attnpool.positional_embedding", ())) - 1
    columns = math.isqrt(max(cells, 0) // 2)
    return (2 * columns * STRIDE, columns * STRIDE) if cells > 0 and 2 * columns ** 2 == cells else None


def describe_released(content):
    """A sentence for the log: what of a released checkpoint is used, and the numbers that it states."""
    state = released_state(content)
    used = len(from_released(state))
    prompts = ", ".join(f"{len(state[name])} {m.value}" for m in Modality
                        if (name := f"prompt_learner.cls_ctx_{m.value}") in state)
    stated = ", ".join(f"{label} {value:.4f}" for label, key in (("Rank-1", "cmc"), ("mAP", "mAP"), ("mINP", "mINP"))
                       if (value := _first_number(content.get(key))) is not None)
    epoch = _first_number(content.get("epoch"))
    return (f"released format, epoch {'unknown' if epoch is None else int(epoch)}, states {stated or 'no results'}; "
            f"{used} of its {len(state)} weights used (two stems, trunk, attention pool, neck), {len(state) - used} "
            f"ignored (unused copies, text encoder, prompts: {prompts or 'none'}); it does not say which data set or "
            "trial it was trained on")


def _first_number(value):
    """The first entry of a number, an array or a list as a float; None if there is none."""
    try:
        number = float(np.ravel(value)[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if math.isfinite(number) else None


def to_released(content, clip, height, width):
    """The released format of one of our checkpoints: {"state_dict", "cmc", "mAP", "mINP", "epoch"}.

    What our training does not touch is CLIP's: the unused copies of the image tower and the text encoder. A
    checkpoint without prompts (train_prepare.py) gets one per modality, with CLIP's own embeddings of "X X X X".
    `cmc` has 20 ranks, NaN where the checkpoint does not store them.

    Args: content: of `load_checkpoint`; clip: the `open_clip.CLIP` that training began from; height, width: pixels.
    Raises: UserError: the CLIP weights have other sizes than the checkpoint.
    """
    trained = content["state_dict"]
    start = {name: value.contiguous() for name, value in CCLNet(clip.visual, height, width).state_dict().items()}
    for name, value in trained.items():
        if name not in start or start[name].shape != value.shape:
            raise UserError(f"the CLIP weights have no {name} of shape {tuple(value.shape)} as the checkpoint does; "
                            "expected the CLIP that training began from. Name it with --clip_weights")
    state = {}
    for copy, stem in COPIES:
        state.update({copy + name.removeprefix(stem).removeprefix("trunk."): value for name, value in start.items()
                      if name.startswith((stem, "trunk.", "attnpool."))})
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
