"""Reads checkpoints, and what their settings may decide here: the network, its input and the data set that is read."""
from pathlib import Path

import torch

from configs.defaults import DEMO_ROOT
from model.published import load_checkpoint
from model.released import checkpoint_size, is_mirrored, released_state
from utils.errors import UserError, quoted
from utils.settings import flat

# All others are of the run or the machine that trained it: where files go, what is logged, which galleries are drawn.
# The untrained network that a test is compared with has the run's seed; the page names the method.
TAKEN = ("SEED", "MODEL.", "INPUT.", "PRECISION", "DATASET.NAME", "DATASET.ROOT", "DATASET.TRIAL",
         "DATASET.CHECK_COUNTS", "TEST.MIRRORED", "METHOD.NAME")


def read_checkpoint(path):
    """Read a checkpoint's content, a dict with the weights under "state_dict".

    Whether the weights are those of a tower is compared when the model is built.

    Args: path: a .pth file of ours or a released one, a .safetensors file, or hf://OWNER/NAME.
    Raises: UserError: the file is missing, damaged or holds no weights.
    """
    content = load_checkpoint(path)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not state or not all(isinstance(w, torch.Tensor) for w in state.values()):
        raise UserError(f"checkpoint {quoted(path)} holds no image side; expected a state_dict of weights, as in "
                        "prepare_last.pth, model_last.pth or a released checkpoint")
    return content


def settings_of(content):
    """Return the settings that are taken from a checkpoint, whoever made it, for `load_config(base=...)`.

    Of a released format that is the size of the images, and whether mirror images are tested. The demo's people are
    never drawn because a file says so.

    Args: content: of `model.published.load_checkpoint`, {} without a checkpoint.
    Returns: {"SECTION.KEY": value}, unchecked: `load_config` checks it.
    """
    config, released = content.get("config"), released_state(content)
    stored = flat(config) if isinstance(config, dict) and released is None else {}
    stored = {key: value for key, value in stored.items()
              if any(key.startswith(name) if name.endswith(".") else key == name for name in TAKEN)}
    if stored.get("DATASET.NAME") == "demo" and not Path(str(stored.get("DATASET.ROOT", DEMO_ROOT))).is_dir():
        stored = {key: value for key, value in stored.items() if not key.startswith("DATASET.")}
    if released is not None and is_mirrored(released):
        stored["TEST.MIRRORED"] = True
    return dict(zip(("INPUT.HEIGHT", "INPUT.WIDTH"), checkpoint_size(content) or ())) | stored
