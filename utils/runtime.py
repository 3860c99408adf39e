"""Picks the device, sets a GPU's precision, compiles the tower and opens the log file."""
import contextlib
import sys
import textwrap
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.errors import UserError, explained, shown

COLUMNS, INDENT = 100, "    "       # of a log's lines, and before what is continued


def pick_device(name):
    """Return the torch device of "auto", "cuda" or "cpu". Raises UserError: cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("DEVICE is cuda, but torch finds no GPU here; "
                        + (unused_gpu_warning() or "set DEVICE to auto or cpu"))
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def unused_gpu_warning(devices="/dev"):
    """Return a sentence if this machine has an NVIDIA GPU that torch cannot use; None otherwise."""
    if torch.cuda.is_available() or not list(Path(devices).glob("nvidia[0-9]*")):
        return None
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return (f"this machine has an NVIDIA GPU, but this PyTorch ({torch.__version__}, {built}) cannot use it; update "
            "the driver (nvidia-smi names the newest CUDA that it supports), or install a PyTorch built for that CUDA")


# How a GPU computes fp32 matrix products and fp32 convolutions: "ieee" is exact, "tf32" keeps 10 bits of each factor.
# "released" are PyTorch's defaults, with which the released numbers were made. CPUs compute all of them exactly.
FP32_ON_GPU = {"released": ("ieee", "tf32"), "fp32": ("ieee", "ieee"), "tf32": ("tf32", "tf32"),
               "bf16": ("ieee", "ieee")}


def autocast(name, device):
    """Return a context that computes in bfloat16 where that is safe if name is "bf16", else changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


@contextlib.contextmanager
def gpu_rounding(name):
    """Run a block, forward or backward, with a GPU's fp32 arithmetic of a precision: a name of FP32_ON_GPU."""
    matmul, cudnn, wanted = torch.backends.cuda.matmul, torch.backends.cudnn, FP32_ON_GPU[name]
    owners, switch = (matmul, getattr(cudnn, "conv", cudnn)), "fp32_precision"
    if not hasattr(matmul, switch):       # before PyTorch 2.9, which warns where these are used beside the new ones
        owners, switch, wanted = (matmul, cudnn), "allow_tf32", [kind == "tf32" for kind in wanted]
    before = [getattr(owner, switch) for owner in owners]
    for owner, value in zip(owners, wanted):
        setattr(owner, switch, value)
    try:
        yield
    finally:
        for owner, value in zip(owners, before):
            setattr(owner, switch, value)


def print_line(line):
    """Print lines above the progress bars; characters that do not print are escaped, what the console lacks is "?"."""
    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(shown(line).encode(encoding, "replace").decode(encoding), file=sys.stdout)
    sys.stdout.flush()


def to_device(values, device):
    """Copy an array or tensor of the host to a device. A GPU's copy comes from pinned memory and is not waited for."""
    values, device = torch.from_numpy(values) if isinstance(values, np.ndarray) else values, torch.device(device)
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def to_host(tensor):
    """Begin to copy a tensor to the host; return a function that gives the copy, a NumPy array.

    On a GPU the copy goes to pinned memory, and the function waits for it alone, not for what the GPU was given later.

    Example:
        >>> similarity = to_host(torch.eye(2) @ torch.ones(2))      # begun
        >>> similarity()                                            # arrived
        array([1., 1.], dtype=float32)
    """
    if not tensor.is_cuda:
        copy = tensor.detach().clone()      # later changes of the tensor do not reach it, as on a GPU
        return copy.numpy
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor.detach(), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))

    def wait():
        arrived.synchronize()
        return copy.numpy()
    return wait


def compile_parts(tower, device):
    """Let torch.compile compile a tower's parts in place, when they are first called; the state dict stays as it was.

    Shapes are compiled one by one, so a caller should keep to few batch sizes.

    Raises: UserError: PyTorch finds no compiler here, which a tiny function shows at once.
    """
    wanted = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
    with explained("COMPILE is True, but PyTorch cannot compile here",
                   f"expected {wanted}. Install that, or set COMPILE False"):
        torch.compile(lambda x: 2 * x + 1)(torch.ones(2, device=device))
    for part in _called_parts(tower):
        part.compile(dynamic=False)


def is_compiled(module):
    """Tell whether `compile_parts` was called on a module or a part of it."""
    return any(part._compiled_call_impl is not None for part in module.modules())


def _called_parts(module):
    """Yield the modules that a tower calls: its children; of a list or dict of modules its members."""
    for child in module.children():
        if isinstance(child, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            yield from _called_parts(child)
        else:
            yield child


class Log:
    """Prints lines above the progress bars and appends them, with the time, to FOLDER/log.txt.

    Args: folder: which exists; None where nothing is to be said, in a process that writes no files.
    """

    def __init__(self, folder):
        self.path = folder and Path(folder) / "log.txt"

    def info(self, text):
        """Say a text, broken at COLUMNS between words; what does not print is escaped."""
        if self.path:
            print_line(_broken(text))
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(shown(_broken(f"{datetime.now():%m-%d %H:%M} {text}")) + "\n")


def _broken(text):
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(
        line, COLUMNS, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False))
