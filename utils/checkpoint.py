"""Files that are whole or not there: written to a temporary name, flushed, then renamed."""
import argparse
import hashlib
import io
import json
import math
import os
import pickle
import re
import tempfile
import zipfile
import zlib
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

MOST_INFLATED = 1032        # bytes that a byte of a zip archive can become at most
PARTIAL = ".cclnet-partial"     # how the name of a file ends that is not whole yet, and of no other program's
LARGEST_CLAIM = 2 ** 32     # bytes of a tensor beyond those that its file holds


def write_atomically(path, write, keep=None):
    """Call write(file) on a temporary binary file beside path, flush it to disk, and rename it to path.

    Args: keep: name that the file which path was until now gets, once the new one is whole; None removes it.
    Raises: UserError: the folder is not writable, the disk is full, or path is a folder, a pipe or a device; it keeps
        its old content.
    """
    path = Path(path)
    if os.path.lexists(path) and not path.is_symlink() and not path.is_file():
        raise UserError(f"{quoted(path)} is {'a folder' if path.is_dir() else 'neither file nor folder'}; expected a "
                        "file or nothing there. Move it away, or name another place")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(partial, path)
        except BaseException:       # a signal too may come at any moment
            Path(partial).unlink(missing_ok=True)
            if keep is not None and not path.exists() and os.path.exists(keep):
                os.replace(keep, path)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be written ({error.strerror or error}); free space, or name a place "
                        "that is writable")


def open_lock(path):
    """Open a file to lock, for writing; it is made if it is missing and never emptied.

    Raises: OSError: it cannot be opened, or is a symbolic link, which could lead to somebody's file.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    return os.fdopen(handle, "r+")


def _flush_folder(folder):
    """Bring a rename to disk, so that it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(path, content):
    """Save a dict of tensors, numbers, strings and dicts of them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)      # in memory, so that a full disk is an OSError of the write below
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def save_array(path, array):
    """Save a .npy file."""
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))


def map_array(path):
    """Open the array of a .npy file, memory-mapped; no pickled object is executed.

    Raises: ValueError: the file is missing or no file, is damaged, holds less than its header says, or no plain array.
    """
    try:
        if not os.path.isfile(path):        # a pipe would be waited for
            raise ValueError("no such file")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of several arrays")
        return array
    except (OSError, EOFError, OverflowError, SyntaxError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__)


def file_digest(path):
    """Return the SHA-256 of a file: hex digits. While its size and times stay the same it is read once."""
    stat = os.stat(path)
    return _remembered_digest(os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(1000)
def _remembered_digest(path, *_):
    return read_digest(path)


def read_digest(path):
    """Read a file, by pieces, for its SHA-256: hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2 ** 20):
            digest.update(piece)
    return digest.hexdigest()


def load_array(path):
    """Read the array of a .npy file into memory. Raises: ValueError: as `map_array`."""
    return np.array(map_array(path))


def load_arrays(path):
    """Read the arrays of a .npz file: {name: array}. No pickled object is executed.

    What the archive and the headers of its arrays claim is compared with what it holds before memory is taken.

    Raises: ValueError: the file is no file, no such archive, or damaged, or claims more than it holds.
    """
    try:
        if not os.path.isfile(path):
            raise ValueError("no such file")
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_claims(archive, member, os.path.getsize(path))
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, OverflowError, SyntaxError, TypeError, NotImplementedError, RuntimeError,
            zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__)


def _check_claims(archive, member, size):
    """Raise ValueError unless an array of a .npz file has the size that its header says and `size` bytes can yield."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        shape, _, kind = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                          else np.lib.format.read_array_header_2_0)(file)
        claimed = math.prod(shape) * kind.itemsize
        can_hold = size * (1 if member.compress_type == zipfile.ZIP_STORED else MOST_INFLATED)
        if not kind.hasobject and (claimed != member.file_size - file.tell() or member.file_size > can_hold):
            raise ValueError(f"{member.filename} claims {claimed:,} bytes in an archive that does not hold them")


def save_json(path, content):
    """Save readable JSON."""
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


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
    Raises: UserError: the file is damaged, claims more than it holds, or holds more than tensors, numbers and text.
    """
    with explained(f"{what} cannot be read safely", f"expected tensors, numbers and text alone. {remedy}"):
        _check_archive(source)
        with torch.serialization.safe_globals(HARMLESS):
            try:
                content = torch.load(source, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                program = re.search(r"GLOBAL (\S+)", str(error))      # else what torch advises: to load it unsafely
                raise ValueError(f"it names {program[1]}, which may be a program" if program else "it is damaged")
    for tensor in _tensors(content):
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        claimed = tensor.numel() * tensor.element_size()
        if not is_plain or claimed - tensor.untyped_storage().nbytes() > LARGEST_CLAIM:
            raise UserError(f"{what} holds a tensor of shape {tuple(tensor.shape)} without its data; expected dense "
                            f"tensors. {remedy}")
    return content


def _check_archive(source):
    """Refuse an archive whose files are larger than itself, as torch.save writes none. Raises: ValueError."""
    if not zipfile.is_zipfile(source):
        return
    with zipfile.ZipFile(source) as archive:
        claimed = sum(file.file_size for file in archive.infolist())
        archive.fp.seek(0, os.SEEK_END)
        if claimed > archive.fp.tell():
            raise ValueError(f"its files claim {claimed:,} bytes, but it has {archive.fp.tell():,}")
        archive.fp.seek(0)


def _tensors(content):
    """List the tensors of containers in one another."""
    left, seen, found = [content], set(), []
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return found
