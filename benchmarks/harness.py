"""Shared by the benchmarks: repeated timing, a training step, and a table that every script adds rows to.

    results = Results("memory")
    results.add(Row("step", measure(ours), measure(reference)))
    results.save()

Rows land in benchmarks/results/<device>.json, one section per subject, and the Markdown tables beside it are
written anew from all sections.
"""
import json
import os
import platform
import re
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from loss.method import EpochStart

FOLDER = Path(__file__).parent / "results"


@dataclass
class Row:
    """One line of a table; times in seconds, None where there is none."""

    what: str
    ours: float | None = None
    reference: float | None = None
    note: str = ""
    host: float | None = None           # share of the time in which the host launches kernels


COLUMNS = {
    "what": lambda row: row["what"],
    "ours": lambda row: seconds(row["ours"]),
    "reference": lambda row: seconds(row["reference"]),
    "reference / ours": lambda row: f"{row['reference'] / row['ours']:.1f} x" if row["reference"] else "",
    "host": lambda row: "" if row.get("host") is None else f"{row['host']:.0%}",
    "note": lambda row: row["note"],
}


def seconds(value):
    """Write a time with a fitting unit; "" for none."""
    if not value:
        return ""
    unit, size = next(((unit, size) for unit, size in (("s", 1), ("ms", 1e-3)) if value >= size), ("us", 1e-6))
    return f"{value / size:.3g} {unit}"


def measure(function, repeats=5, warmup=1):
    """Return the median seconds of a call, finished on the GPU too."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        synchronize()
        started = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def timed(function):
    """Call a function once: seconds until a GPU has done it, and what it returned."""
    found = []
    return measure(lambda: found.append(function()), repeats=1, warmup=0), found[0]


def synchronize():
    """Wait until a GPU has done its work, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_method(settings, prototypes, epoch):
    """Start an epoch of the method of `train_settings`, with one image in each cluster.

    Args: prototypes: Modality -> (K, D) of unit length; epoch: from METHOD.CROSS_EPOCH on the modalities meet.
    """
    method = settings.method(**settings.of_method)
    labels = {m: np.arange(len(rows)) for m, rows in prototypes.items()}
    method.start(EpochStart({"feature": prototypes}, labels, {m: np.zeros_like(y) for m, y in labels.items()}), epoch)
    return method


def device_name():
    """Name the GPU, or the CPU with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else platform.machine()} ({torch.get_num_threads()} threads)"


def device_stem():
    """Write the device's name as the stem of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")


def environment():
    """Return versions, device, commit and load, which are saved with every section."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                         cwd=Path(__file__).parent)
    return {"device": device_name(), "commit": git.stdout.strip(), "torch": torch.__version__,
            "cuda": torch.version.cuda or "none", "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 1), "time": time.strftime("%Y-%m-%d %H:%M")}


class Results:
    """The rows of one subject."""

    def __init__(self, subject):
        self.subject = subject
        self.rows = []

    def add(self, *rows):
        """Keep and print rows."""
        for row in map(asdict, rows):
            self.rows.append(row)
            print("  ".join(f"{name} {cell(row)}" for name, cell in COLUMNS.items() if cell(row)), flush=True)

    def section(self):
        """Return what is written: {"environment", "rows"}."""
        return {"environment": environment(), "rows": self.rows}

    def save(self):
        """Write this subject's section and keep the others of this device."""
        path = FOLDER / f"{device_stem()}.json"
        write(path, {**(json.loads(path.read_text()) if path.is_file() else {}), self.subject: self.section()})


def write(path, sections, notes=()):
    """Write sections as JSON, and as tables into the Markdown file beside it.

    Args: sections: subject -> `Results.section`; notes: sentences below the tables.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sections, indent=1) + "\n")
    lines = [f"# {next(iter(sections.values()))['environment']['device']}" if sections else "# Nothing measured", "",
             "`host` is the share of the time in which the host launches kernels.", ""]
    for subject, section in sections.items():
        about, rows = section["environment"], section["rows"]
        shown = {name: cell for name, cell in COLUMNS.items() if any(cell(row) for row in rows)}
        lines += [f"## {subject}", "", f"Commit {about['commit']}, torch {about['torch']}, load {about['load']} at the "
                  f"end, {about['time']}.", "", f"| {' | '.join(shown)} |", "|" + " --- |" * len(shown),
                  *(f"| {' | '.join(cell(row) for cell in shown.values())} |" for row in rows), ""]
    path.with_suffix(".md").write_text("\n".join([*lines, *notes]) + "\n")
