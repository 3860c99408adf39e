"""State dicts of files that others made: read without running code of theirs, and compared with a module's own."""
import contextlib
import hashlib
import os
import socket
import zipfile

import torch

from utils.checkpoint import file_digest, load_plain
from utils.errors import UserError, explained, quoted

OTHER_WEIGHTS = "Download the file again, or set MODEL.CLIP_WEIGHTS to another"
SECONDS = 30                        # without a byte of a download


@contextlib.contextmanager
def downloading(what, remedy):
    """Let no download in a block wait for ever, and explain its errors. Raises: UserError: "WHAT could not be ..."."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)       # the libraries set none
    try:
        with explained(f"{what} could not be downloaded", remedy):
            yield
    finally:
        socket.setdefaulttimeout(patience)


def read_state_dict(path):
    """Read the weights of a file: {name: tensor on the host}.

    The file holds a state dict that torch.save wrote, alone or under "state_dict" or "model", with or without "module."
    before the names; or under "teacher", whose backbone is taken; or it is one of OpenAI's CLIP archives. Those are
    programs (TorchScript), so one is loaded only if its SHA-256 is one that OpenAI published.

    Raises: UserError: the file is missing or damaged, holds more than tensors, or is another program.
    """
    if not os.path.isfile(path):
        raise UserError(f"weights {quoted(path)} are missing; set MODEL.CLIP_WEIGHTS to a file, to \"openai\", which "
                        "downloads MODEL.NAME, or to \"imagenet\"")
    if _is_torchscript(path):
        content = _published_archive(path)
    else:
        content = load_plain(path, f"weights {quoted(path)}", OTHER_WEIGHTS)
    for key, start in (("state_dict", ""), ("model", ""), ("teacher", "backbone.")):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = {str(name).removeprefix("module."): value for name, value in content[key].items()}
            content = {name.removeprefix(start): value for name, value in content.items() if name.startswith(start)}
    found = isinstance(content, dict) and {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not found:       # numbers and text beside them do no harm
        raise UserError(f"weights {quoted(path)} hold no tensors by name; expected a state dict. {OTHER_WEIGHTS}")
    return found


def _is_torchscript(path):
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _published_archive(path):
    """Load an archive of OpenAI's: its state dict. Raises: UserError: its SHA-256 is not in open_clip's table."""
    from open_clip.pretrained import get_pretrained_url, list_pretrained_models_by_tag  # slow to import

    digest, names = file_digest(path), list_pretrained_models_by_tag("openai")
    if not any(f"/{digest}/" in get_pretrained_url(name, "openai") for name in names):
        raise UserError(f"weights {quoted(path)} are a TorchScript archive, a program, and none that OpenAI published "
                        "(by its SHA-256); nothing of it was run. If you trust it, convert it: python -c \"import "
                        "torch; torch.save(torch.jit.load('FILE', 'cpu').state_dict(), 'OUT')\"")
    return dict(torch.jit.load(path, map_location="cpu").state_dict())


def check_state_dict(found, expected, what, remedy):
    """Compare the weights of a file with the state dict of the module that shall load them.

    Names and shapes must be equal; floats may be of any precision; all values must be finite.

    Args: found, expected: {name: tensor}; what: names the file, remedy: ends the message.
    Raises: UserError: names the first weight that is wrong.
    """
    def refuse(name, problem):
        raise UserError(f"{what} does not fit the model: {name} {problem}. {remedy}")

    for name, wanted in expected.items():
        value, shape = found.get(name), tuple(wanted.shape)
        if not isinstance(value, torch.Tensor):
            refuse(name, f"is missing; expected a tensor of shape {shape}")
        if tuple(value.shape) != shape:
            refuse(name, f"has shape {tuple(value.shape)}; expected {shape}")
        if value.is_floating_point() != wanted.is_floating_point() or value.is_complex():
            refuse(name, f"holds numbers of type {value.dtype}; expected {wanted.dtype}")
        if not torch.isfinite(value).all():
            refuse(name, "holds NaN or Inf; expected finite numbers")
    for name in found:
        if name not in expected:
            refuse(name, "is unknown; expected no such weight")


def weights_digest(module):
    """SHA-256 of a module's state dict, names and values, to tell whether a file of the same name changed."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
