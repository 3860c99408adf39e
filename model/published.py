"""Trained weights as others publish and read them: safetensors files, alone or on the Hugging Face Hub."""
import json
import os

from utils.checkpoint import load_plain
from utils.errors import UserError, explained, quoted

HUB = "hf://"                       # hf://OWNER/NAME or hf://OWNER/NAME/FILE
FILE_NAME = "model.safetensors"     # of a model on the hub, if no file is named
SECONDS = 20                        # for the hub to answer
METADATA = "cclnet"                 # the key under which a file's description lies, as JSON


def as_safetensors(content):
    """Return a checkpoint's state dict as the bytes of a safetensors file, everything else as JSON in its metadata.

    Args: content: {"state_dict": name -> tensor, ...}, the rest what JSON can hold.
    """
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in content["state_dict"].items()}
    description = {key: value for key, value in content.items() if key != "state_dict"}
    return save(state, {"format": "pt", METADATA: json.dumps(description, sort_keys=True)})


def load_checkpoint(path):
    """Read the dict in a checkpoint file, on the host; no pickled code is executed.

    Args: path: a .pth file, a .safetensors file, or hf://OWNER/NAME.
    Raises: UserError: the file is missing, damaged, or holds more than tensors, numbers and text.
    """
    path = local_path(path)
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {quoted(path)} is missing; expected a .pth file written by train_prepare.py or "
                        "train_clip.py, or a released one")
    if str(path).endswith(".safetensors"):
        return load_safetensors(path)
    content = load_plain(path, f"checkpoint {quoted(path)}", "Copy or download the file again")
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {quoted(path)} holds a {type(content).__name__}; expected a dict")
    return content


def load_safetensors(path):
    """Read a safetensors file as a checkpoint's content: {"state_dict": ..., and what its description says}."""
    from safetensors import safe_open

    with (explained(f"checkpoint {path} cannot be read",
                    "expected a whole safetensors file. Copy or download the file again"),
          safe_open(path, "pt") as file):
        state = {name: file.get_tensor(name) for name in file.keys()}
        return {**json.loads((file.metadata() or {}).get(METADATA, "{}")), "state_dict": state}


def local_path(path):
    """Return the path of a checkpoint on this machine; hf://OWNER/NAME[/FILE] is downloaded once, into the Hub's cache.

    Raises: UserError: the address is none, or the file cannot be fetched.
    """
    if not str(path).startswith(HUB):
        return path
    owner, _, rest = path.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not owner or not name:
        raise UserError(f"{path} names no model; expected hf://OWNER/NAME or hf://OWNER/NAME/FILE.safetensors")
    import huggingface_hub as hub  # slow to import

    place = f"{owner}/{name}", file or FILE_NAME
    with explained(f"{path} cannot be fetched", f"expected a model on the Hugging Face Hub with {place[1]}. Check its "
                   "name and the network, or download the file and name its path"):
        try:        # hf_hub_download asks a hub that does not answer for six minutes
            hub.get_hf_file_metadata(hub.hf_hub_url(*place), timeout=SECONDS)
        except Exception:
            if isinstance(cached := hub.try_to_load_from_cache(*place), str):
                return cached
            raise
        return hub.hf_hub_download(*place)


def checkpoint_normalisation(content):
    """Find how a checkpoint's images are normalised, a name of INPUT.NORMALISATION; "imagenet" if it does not say."""
    for key in ("config", "INPUT", "NORMALISATION"):
        content = content.get(key) if isinstance(content, dict) else None
    return content or "imagenet"
