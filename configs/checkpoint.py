"""What a checkpoint's settings may decide here: the network, its input and the data set that is read."""
from pathlib import Path

from configs.defaults import DEMO_ROOT
from model.released import checkpoint_size, is_mirrored, released_state
from utils.settings import flat

# All others are of the run or the machine that trained it: where files go, what is logged, which galleries are drawn.
TAKEN = ("MODEL.", "INPUT.", "PRECISION", "DATASET.NAME", "DATASET.ROOT", "DATASET.TRIAL", "DATASET.CHECK_COUNTS",
         "TEST.MIRRORED", "METHOD.NAME")     # the last of which the page of a test names; an unknown one is left out


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
