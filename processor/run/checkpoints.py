"""Reads checkpoints: ours and released ones."""
import torch

from model.published import load_checkpoint
from utils.errors import UserError, quoted


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
