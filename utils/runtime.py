"""Device, precision, log file."""
import contextlib
import logging
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from utils.errors import UserError


def pick_device(name):
    """The torch device of "auto", "cuda" or "cpu". Raises UserError: cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("DEVICE is cuda, but torch finds no GPU here; set DEVICE to auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def precision(name, device):
    """Run a block in "fp32", "tf32" (fp32 with faster matrix products on GPUs) or "bf16" (autocast)."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


class _BarSafeHandler(logging.Handler):
    """Writes lines above the progress bars."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _LogFile(logging.FileHandler):
    """A log file whose failure (a full disk) ends the run with a sentence, instead of a traceback per line."""

    def handleError(self, record):
        """Raise what `emit` caught."""
        raise


def open_log(output_dir, name):
    """A logger that prints to the console and appends to OUTPUT_DIR/log.txt.

    Raises: UserError: the folder cannot be written.
    """
    logger = logging.getLogger(f"cclnet.{name}")
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        file = _LogFile(Path(output_dir) / "log.txt", encoding="utf-8")
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {output_dir} cannot be written ({error.strerror or error}); choose another")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(file)
    logger.addHandler(_BarSafeHandler())
    return logger
