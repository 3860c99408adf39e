"""Times of every part on a GPU, in at most five minutes; `make gpu` runs its tests and a short demo after it.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --only step embedding      # some parts
    python -m benchmarks.gpu --device cpu --only step   # batches of 4 images
    python -m benchmarks.gpu --small --device cpu       # to try the command: the numbers say nothing

Parts run in turn until the time is used up. A part that fails is named, the others run, and the exit code is 1.
Tables and numbers land in benchmarks/results/<device>.{md,json}.
"""
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import parts
from utils.errors import Parser, UserError, exit_on_user_error
from utils.runtime import pick_device, unused_gpu_warning

FOLDER = Path(__file__).parent / "results"
# name -> a function of a `Bench`, and the seconds that it takes on a fast GPU: without them it is left out
PARTS = {"step": (parts.steps, 40), "epoch": (parts.whole_epochs, 120), "embedding": (parts.embeddings, 25),
         "compiled": (parts.compiled_steps, 120), "clustering": (parts.clustering, 30),
         "augmentation": (parts.augmentation, 5), "memories": (parts.memories, 5)}


def run_parts(chosen, bench, budget):
    """Run parts in turn, for some seconds. Returns: {part: [`Row`]}; sentences on what was left out; what failed."""
    started, found, left_out, failed = time.perf_counter(), {}, [], []
    for name, (run, expected) in chosen.items():
        left = budget - (time.perf_counter() - started)
        if left < expected:
            left_out.append(f"Left out: {name}: {expected} s expected, {max(left, 0):.0f} s left")
            continue
        print(f"{name}:", flush=True)
        try:
            found[name] = run(bench)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            failed.append(f"Failed: {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        print("\n".join("  ".join(filter(None, cells(row))) for row in found[name]), flush=True)
    return found, left_out, failed


def cells(row):
    """Write a `Row` as texts: what, time, host, note."""
    unit, size = next(((unit, size) for unit, size in (("s", 1), ("ms", 1e-3)) if (row.seconds or 1) >= size),
                      ("us", 1e-6))
    return (row.what, f"{row.seconds / size:.3g} {unit}" if row.seconds else "",
            "" if row.host is None else f"{row.host:.0%}", row.note)


def environment(device):
    """Return versions, device, commit and load. Args: device: torch.device that was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=FOLDER.parent)
    processor = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    name = processor[1] if processor else platform.machine()
    return {"device": torch.cuda.get_device_name() if device.type == "cuda" else
            f"{name} ({torch.get_num_threads()} threads)", "commit": commit.stdout.strip(),
            "torch": torch.__version__, "cuda": torch.version.cuda or "none", "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 1), "time": time.strftime("%Y-%m-%d %H:%M")}


def write(folder, device, found, notes):
    """Write the rows of parts as JSON and as Markdown. Args: notes: sentences below the tables."""
    about = environment(device)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', about['device'].lower()).strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": about, "parts": {
        name: [asdict(row) for row in rows] for name, rows in found.items()}}, indent=1) + "\n")
    lines = [f"# {about['device']}", "", f"Commit {about['commit']}, torch {about['torch']}, {about['time']}, load "
             f"{about['load']} at the end. `host` is the share of the time in which the host launches kernels."]
    for name, rows in found.items():
        lines += ["", f"## {name}", "", "| what | time | host | note |", "| --- | --- | --- | --- |",
                  *(f"| {' | '.join(cells(row))} |" for row in rows)]
    path.with_suffix(".md").write_text("\n".join([*lines, "", *notes]) + "\n")


def main(words=None):
    """Run what the command line asks for."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=5, help="after which no part begins")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the results")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("make gpu found no GPU; " + (unused_gpu_warning() or "expected one. To try the command, "
                                                     "run python -m benchmarks.gpu --small --device cpu"))
    sizes = parts.FULL if arguments.device == "cuda" else parts.ON_CPU
    if arguments.small:
        sizes = parts.SMALL
    device = pick_device(arguments.device)
    found, left_out, failed = run_parts({name: part for name, part in PARTS.items() if name in arguments.only},
                                        parts.Bench(device, sizes), 60 * arguments.minutes)
    write(arguments.folder, device, found, [*left_out, *failed])
    print("\n".join([*left_out, *failed]))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_user_error(main)
