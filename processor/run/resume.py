"""What makes a run survive: state files with a checksum, and a lock on its folder."""
import fcntl
import hashlib
import io
import platform
from importlib import metadata
from pathlib import Path

import torch

from utils.checkpoint import PARTIAL, load_plain, write_atomically
from utils.errors import UserError, explained, quoted

DIGEST_BYTES = 32
# What runs write into their folder, by way of temporary files.
WRITTEN = ("*_state.pth", "prepare_*.pth", "model_*.pth", "config.yml", "metrics.json*", "report.html", "features.npz",
           "ranking_*.csv")


class StateFile:
    """A checkpoint to go on from, with its SHA-256 at the end; the one before it is kept as PATH.previous."""

    def __init__(self, path):
        self.path = Path(path)
        self.previous = self.path.with_name(self.path.name + ".previous")

    def save(self, content):
        """Write content (tensors, numbers, text, dicts and lists of them). Raises: UserError: not writable."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        payload = buffer.getbuffer()
        digest = hashlib.sha256(payload).digest()
        write_atomically(self.path, lambda file: file.writelines([payload, digest]), keep=self.previous)

    def load(self):
        """The newest content that is whole, and a warning if that is not the newest; (None, None) without files.

        Raises: UserError: files exist, but none is whole, or one is not from here.
        """
        damaged = []
        for path in (self.path, self.previous):
            if path.is_file():
                content = _read_checked(path)
                if content is not None:
                    return content, f"{damaged[0]} is damaged; resuming from {path}" if damaged else None
                damaged.append(path)
        if damaged:
            raise UserError(f"{' and '.join(map(quoted, damaged))} cannot be read: damaged; the run cannot go on from "
                            "there. Add --fresh to start over and keep the old files aside")
        return None, None


def _read_checked(path):
    """The content of a state file; None if its checksum is wrong."""
    advice = "Move it away, or add --fresh to start over and keep the old files aside"
    with explained(f"state file {quoted(path)} cannot be read", f"expected a readable file. {advice}"):
        data = path.read_bytes()
    payload, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    return load_plain(io.BytesIO(payload), f"state file {quoted(path)}", advice)


def versions():
    """What a result may depend on beside data and settings: name -> version."""
    return {"python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "open_clip_torch")}}


def lock_folder(folder):
    """Hold a folder for this process until it ends, however it ends; the returned file must be kept open.

    Raises: UserError: a living process holds it, or the folder cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".lock", "a")
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {quoted(folder)} cannot be written ({error.strerror or error}); choose another")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise UserError(f"another run is writing to {quoted(folder)}; wait for it, or choose another OUTPUT_DIR")
        raise UserError(f"OUTPUT_DIR {quoted(folder)} cannot be locked ({error.strerror or error}), so that two runs "
                        "could mix there; choose a folder on another disk")
    for name in WRITTEN:        # what a run that was killed while writing has left
        for partial in Path(folder).glob(f".{name}.*{PARTIAL}"):
            partial.unlink()
    return file
