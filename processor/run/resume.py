"""What makes a run survive: state files with a checksum, a lock on the folder, and stopping between iterations."""
import fcntl
import hashlib
import io
import os
import platform
import signal
import stat
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from utils.checkpoint import load_plain, open_lock, write_atomically
from utils.errors import Stopped, UserError, explained, quoted

DIGEST_BYTES = 32
# What runs write into their folder: files by name, folders, and the files in those by their endings.
FILES = (".lock", "log.txt", "config.yml", "metrics.json", "metrics.jsonl", "report.html", "comparison.html",
         "features.npz", "ranking_*.csv", "*_state.pth*", "prepare_*.pth", "model_*.pth")
FOLDERS = ("pseudo_labels", "report_data", "tensorboard", "tests")
ENDINGS = (".npy", ".json", ".jsonl", ".yml", ".html", ".csv", ".npz")


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


def lock_folder(folder, of_run=None):
    """Hold a folder for this process until it ends, however it ends; the returned file must be kept open.

    Args: of_run: the run's folder that this one lies in, if it is not the same.
    Raises: UserError: a living process holds it, or the folder cannot be written.
    """
    try:
        refuse_obstacles(of_run or folder)
        Path(folder).mkdir(parents=True, exist_ok=True)
        refuse_obstacles(folder)
        file = open_lock(Path(folder) / ".lock")
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
    for left_over in Path(folder).glob(".*.partial"):      # of a process that was killed while writing
        left_over.unlink()
    return file


def refuse_obstacles(folder):
    """Refuse a folder in which something else lies where a run writes its files and folders, at any depth.

    Raises: UserError: names it and says what it is.
    """
    folder = Path(folder)
    for kind, patterns in (("file", FILES), ("folder", FOLDERS)):
        for path in (found for pattern in patterns for found in folder.glob(pattern)):
            _refuse_unless(path, kind)
    for name in FOLDERS:
        for parent, folders, files in os.walk(folder / name):
            for entry in (*folders, *files):
                _refuse_unless(Path(parent) / entry, "file" if entry.endswith(ENDINGS) or entry in FILES else "")


def _refuse_unless(path, kind):
    """Refuse a path that is no "file" or "folder", or, if kind is "", neither. Raises: UserError."""
    mode = path.lstat().st_mode
    found = ("a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else
             "a file" if stat.S_ISREG(mode) else "neither file nor folder")
    if found not in ([f"a {kind}"] if kind else ["a file", "a folder"]):
        raise UserError(f"{quoted(path)} is {found}; expected a {kind or 'file or folder'} of a run, or nothing. Move "
                        "it away, or choose another OUTPUT_DIR")


@contextmanager
def stops_on_signals(where):
    """End a run at once when SIGTERM, Ctrl-C, SIGUSR1 or SIGUSR2 comes, within this context.

    Args: where: a function that says from where the run resumes. Raises: Stopped.
    """
    def stop(number, _):
        raise Stopped(f"stopped; {where()}", number)

    before = {number: signal.signal(number, stop)
              for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
