"""From a checkpoint file's content to a model; needs no CLIP weights."""
import torch

from model.cclnet import STRIDE, CCLNet
from model.released import from_released
from utils.checkpoint import released_state
from utils.errors import UserError


def model_from_checkpoint(content, path, height, width):
    """The `CCLNet` in evaluation mode of a checkpoint's content (`utils.checkpoint.load_checkpoint`).

    The released format is recognised by its keys. Every size but that of the images is read from the weights.

    Args: path: for messages; height, width: pixels of the images.
    Raises: UserError: the content is no checkpoint of an image side, or its sizes do not fit.
    """
    released = released_state(content)
    state = content.get("state_dict") if released is None else from_released(released)
    if not isinstance(state, dict) or "attnpool.positional_embedding" not in state:
        raise UserError(f"checkpoint {path} holds no image side (state_dict with stems, trunk, attnpool and neck); "
                        "expected a file written by train_prepare.py or train_clip.py, or a released one")
    tokens = len(state["attnpool.positional_embedding"]) - 1
    if tokens != (height // STRIDE) * (width // STRIDE):
        raise UserError(f"checkpoint {path} was trained on images of {tokens} map cells; INPUT.HEIGHT {height} and "
                        f"INPUT.WIDTH {width} give {(height // STRIDE) * (width // STRIDE)}. Use the configuration of "
                        "the training run")
    try:
        broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
        model = CCLNet.from_state_dict(state, height, width).eval()
    except (RuntimeError, KeyError, AttributeError, TypeError, IndexError, ValueError) as error:
        raise UserError(f"checkpoint {path} does not fit together ({' '.join(str(error).split())[:160]}); expected the "
                        "weights of one model. Train or download it again")
    if broken:
        raise UserError(f"checkpoint {path} holds NaN or Inf in {broken[0]}; expected finite weights. Train or "
                        "download it again")
    return model
