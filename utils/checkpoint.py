"""Files that are whole or not there: written to a temporary name, flushed, then renamed."""
import argparse
import hashlib
import io
import json
import os
import pickle
import re
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError, explained, quoted

# What numpy numbers inside a checkpoint (the released ones hold some) need when no other pickled code may run, as
# numpy 1 ("numpy.core") and numpy 2 ("numpy._core") spell it; and a namespace of settings, which DINO's codes save.
HARMLESS = [argparse.Namespace, np.ndarray, np.dtype, *{type(np.dtype(t)) for t in "?bBhHiIlLqQefd"},
            *((function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")
              for name, function in (("scalar", np._core.multiarray.scalar),
                                     ("_reconstruct", np._core.multiarray._reconstruct)))]
PARTIAL = ".cclnet-partial"     # how the name of a file ends that is not whole yet, and of no other program's


def write_atomically(path, write):
    """Call write(file) on a temporary binary file beside path, flush it to disk, and rename it to path.

    Raises: UserError: the folder is not writable, the disk is full, or path is a folder; it keeps its old content.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:       # a signal too may come at any moment
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be written ({error.strerror or error}); free space, or name a place "
                        "that is writable")


def save_checkpoint(path, content):
    """Save a dict of tensors, numbers, strings and dicts of them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)      # in memory, so that a full disk is an OSError of the write below
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def save_array(path, array):
    """Save a .npy file."""
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))


def save_json(path, content):
    """Save readable JSON."""
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def load_array(path):
    """Read the array of a .npy file into memory; no pickled object is executed.

    Raises: ValueError: it is no such file, or holds less than it says.
    """
    return np.array(np.lib.format.open_memmap(path, mode="r"))


def file_digest(path):
    """Return the SHA-256 of a file: hex digits. While its size and times stay the same it is read once."""
    stat = os.stat(path)
    return _digest(os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(1000)
def _digest(path, *_):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2 ** 20):
            digest.update(piece)
    return digest.hexdigest()


def on_host(state):
    """Copy a state dict's tensors to the host, at any depth."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    return [on_host(value) for value in state] if isinstance(state, list) else state


def load_plain(source, what, remedy):
    """Read the content of a path or binary file that torch.save wrote, on the host; no pickled code is executed.

    Args: what: the file, for the sentence; remedy: its last part.
    Raises: UserError: the file is damaged, or holds more than tensors, numbers and text.
    """
    with (explained(f"{what} cannot be read safely", f"expected tensors, numbers and text alone. {remedy}"),
          torch.serialization.safe_globals(HARMLESS)):
        try:
            return torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            program = re.search(r"GLOBAL (\S+)", str(error))      # else what torch advises: to load it unsafely
            raise ValueError(f"it names {program[1]}, which may be a program" if program else "it is damaged")
