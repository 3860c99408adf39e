"""What a device can do, what a piece of work needs, and what bounds it: arithmetic, memory or the host.

Peaks are measured here, by one large matrix product and one large copy, not read from a data sheet.
"""
import time
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import measure
from utils.runtime import gpu_rounding

# PRECISION -> what its peak is measured with: nearly all of the tower's work is in convolutions.
PEAK_OF = {"released": ("tf32", torch.float32), "fp32": ("fp32", torch.float32), "tf32": ("tf32", torch.float32),
           "bf16": ("fp32", torch.bfloat16)}
# Operations that move nothing: they give another view of memory, or memory that nothing was written to.
MOVE_NOTHING = ("view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice", "select", "split",
                "unsqueeze", "squeeze", "alias", "detach", "empty", "empty_like", "empty_strided", "new_empty",
                "new_empty_strided", "as_strided", "unbind")


class ByteCounter(TorchDispatchMode):
    """Counts the bytes of all tensors that operations read and write, each as if nothing stayed in a cache."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and count its inputs and outputs."""
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]     # none: a question
        if made and func.overloadpacket.__name__ not in MOVE_NOTHING:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(leaf.numel() * leaf.element_size() for leaf in (*read, *made))
        return out


@dataclass(frozen=True)
class Work:
    """What a call needs: floating-point operations in matrix products and convolutions, bytes that kernels move."""

    flops: float
    bytes: float


def count(function):
    """Count the `Work` of a call, by PyTorch's counter of operations and `ByteCounter`."""
    with FlopCounterMode(display=False) as flops, ByteCounter() as moved:
        function()
    return Work(flops.get_total_flops(), moved.bytes)


@dataclass(frozen=True)
class Peaks:
    """What a device reaches: PRECISION -> FLOP/s, and bytes/s."""

    flops: dict
    bandwidth: float


def measure_peaks(device, side, copied):
    """Measure `Peaks`. Args: side: of the square matrices; copied: bytes of the copy."""
    flops = {}
    for precision, (rounding, dtype) in PEAK_OF.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with gpu_rounding(rounding):
            flops[precision] = 2 * side**3 / measure(lambda x=a, y=b: x @ y, repeats=5, warmup=3)
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(flops, 2 * copied / measure(lambda: target.copy_(source), repeats=5, warmup=3))


@dataclass(frozen=True)
class Timing:
    """Seconds of a call until the device has done it, and of the host alone (None where the host is the device)."""

    seconds: float
    host: float | None


def time_call(function, device, repeats, warmup=2):
    """Measure a `Timing`: medians for the whole, the least for the host, which must not wait for a full queue."""
    seconds = measure(function, repeats, warmup)
    if device.type != "cuda":
        return Timing(seconds, None)
    hosts = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        hosts.append(time.perf_counter() - started)
    torch.cuda.synchronize()
    return Timing(seconds, min(hosts))


def shares(timing, work, peaks, precision):
    """Divide the least time that each resource needs by the time measured: {"arithmetic", "memory"[, "host"]}."""
    found = {"arithmetic": work.flops / peaks.flops[precision] / timing.seconds,
             "memory": work.bytes / peaks.bandwidth / timing.seconds}
    return found if timing.host is None else {**found, "host": timing.host / timing.seconds}
