"""Shared by the benchmarks: repeated timing, peak memory, a training step, and a table that every script adds rows to.

    results = Results("sampler")
    results.compare("epoch set-up", ours=lambda: ..., reference=lambda: ..., target=0.1)
    results.save()

Rows land in benchmarks/results/<device>.json, one section per subject, and the Markdown table beside it is
written anew from all sections.
"""
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy
import sklearn
import torch

from loss.method import EpochStart
from processor.train import train_step

FOLDER = Path(__file__).parent / "results"
HEAD = ("what", "ours", "reference", "ratio", "bound", "ours / bound", "target", "note")


@dataclass(frozen=True)
class Row:
    """One line of the table; times in seconds, None where there is none."""

    what: str
    ours: float = None
    reference: float = None
    bound: float = None         # the least time the hardware allows, measured
    target: str = ""
    note: str = ""

    def cells(self):
        """The line as strings, in the order of HEAD."""
        ratio = f"{self.reference / self.ours:.1f} x" if self.ours and self.reference else ""
        share = f"{self.ours / self.bound:.2f}" if self.ours and self.bound else ""
        return (self.what, *map(seconds, (self.ours, self.reference)), ratio, seconds(self.bound), share, self.target,
                self.note)


def seconds(value):
    """A time with a fitting unit."""
    if value is None:
        return ""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def measure(function, repeats=5, warmup=1):
    """Median seconds of a call, finished on the GPU too; the machine's noise shows as the spread of `repeats`."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        _finish()
        started = time.perf_counter()
        function()
        _finish()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def start_method(settings, prototypes, epoch):
    """Start an epoch of the method of `TrainSettings`, with one image in each cluster.

    Args: prototypes: Modality -> (K, D) of unit length; epoch: from METHOD.CROSS_EPOCH on the modalities meet.
    """
    method = settings.method(**settings.of_method)
    labels = {m: np.arange(len(rows)) for m, rows in prototypes.items()}
    method.start(EpochStart({"feature": prototypes}, labels, {m: np.zeros_like(y) for m, y in labels.items()}), epoch)
    return method


def take_step(model, optimizer, method, batch, precision):
    """Take one step of train_prepare.py: its losses and numbers. Args: as `processor.train.train_step`."""
    return train_step(model, optimizer, method, batch, None, precision)


def _finish():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(function, *arguments):
    """Bytes of host memory that function(*arguments) needs above what its process held before, in a process of its own.

    The process is started afresh, so function must be importable; its arguments are small ones such as sizes.
    It is called as function(*arguments) and returns the callable to measure.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of, (function, arguments))


def _peak_of(function, arguments):
    prepared = function(*arguments)
    Path("/proc/self/clear_refs").write_text("5")       # the high-water mark falls to what is held now
    before = _status("VmHWM")
    prepared()
    return _status("VmHWM") - before


def _status(name):
    """A size of this process in bytes, from the kernel's own record."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def device_name():
    """The GPU, or the CPU and its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        model = platform.processor() or platform.machine()
    return f"{model} ({torch.get_num_threads()} threads)"


def device_stem():
    """The device's name as the stem of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")


def environment():
    """Versions, device, commit and load, saved with every section."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                         cwd=Path(__file__).parent)
    return {"device": device_name(), "commit": git.stdout.strip(), "torch": torch.__version__,
            "numpy": np.__version__, "scipy": scipy.__version__, "sklearn": sklearn.__version__,
            "python": platform.python_version(), "load": round(os.getloadavg()[0], 1),
            "time": time.strftime("%Y-%m-%d %H:%M")}


class Results:
    """The rows of one subject."""

    def __init__(self, subject):
        self.subject = subject
        self.rows = []

    def add(self, row):
        """Keep and print a `Row`."""
        self.rows.append(row)
        print("  ".join(f"{name} {cell}" for name, cell in zip(HEAD, row.cells()) if cell), flush=True)

    def compare(self, what, ours, reference=None, bound=None, target="", note="", repeats=5):
        """Time callables `ours`, `reference` and `bound`, and keep the row; returns it."""
        row = Row(what, *(f and measure(f, repeats) for f in (ours, reference, bound)), target, note)
        self.add(row)
        return row

    def save(self):
        """Write this subject's section, and the table of all sections of this device."""
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{device_stem()}.json"
        sections = json.loads(path.read_text()) if path.is_file() else {}
        sections[self.subject] = {"environment": environment(), "rows": [asdict(row) for row in self.rows]}
        path.write_text(json.dumps(sections, indent=1) + "\n")
        path.with_suffix(".md").write_text(_markdown(sections))


def _markdown(sections):
    lines = [f"# {next(iter(sections.values()))['environment']['device']}", "",
             "`ratio` is reference / ours; `bound` is the least time the hardware allows.", ""]
    for subject, section in sections.items():
        about = section["environment"]
        lines += [f"## {subject}", "",
                  f"Commit {about['commit']}, torch {about['torch']}, load {about['load']} at the end, "
                  f"{about['time']}.", "",
                  f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD),
                  *(f"| {' | '.join(Row(**row).cells())} |" for row in section["rows"]), ""]
    return "\n".join(lines)
