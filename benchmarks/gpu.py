"""Everything worth knowing on a GPU, in one command of at most eight minutes: tests, a demo run, times and limits.

    python -m benchmarks.gpu                            # or: make gpu
    python -m benchmarks.gpu --only step embedding      # some parts
    python -m benchmarks.gpu --small --device cpu       # to try the command: the numbers say nothing

Parts run in turn until the time is used up. A part that fails is named, the others run, and the exit code is 1.
Tables and numbers land in benchmarks/results/gpu-<device>.{md,json}.
"""
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import traceback
import types
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("ftfy") is None:        # open_clip imports it; plain ASCII needs no repair
    sys.modules["ftfy"] = types.SimpleNamespace(fix_text=lambda text: text)

import torch  # noqa: E402

from benchmarks import gpu_parts as parts  # noqa: E402
from benchmarks import harness  # noqa: E402
from benchmarks.harness import Results, Row  # noqa: E402
from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402
from utils.runtime import pick_device, unused_gpu_warning  # noqa: E402

MINUTES = 8.0
EPOCHS = 240                    # of both scripts
SHARED_BY = "bf16"              # the precision of whose epoch the other parts are a share
SHORT_DEMO = ("PREPARE.EPOCHS", "4", "METHOD.CROSS_EPOCH", "3", "PROMPT.EPOCHS", "5", "FINETUNE.EPOCHS", "6")
DEMO_SECONDS = 240.0            # after which the short demo is given up, so that the parts after it have their turn


@dataclass(frozen=True)
class Part:
    """A piece of the measurement."""

    run: object                 # (bench) -> rows
    expected: float             # seconds on a fast GPU; it is left out when less time is left
    needs: tuple = ()           # packages


def gpu_tests(bench):
    """Run the tests marked `gpu` in a process of their own."""
    started = time.perf_counter()
    found = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"], cwd=ROOT,
                           capture_output=True, text=True, timeout=60 * MINUTES)
    lines = found.stdout.strip().splitlines() or [found.stderr[-500:]]
    if found.returncode:
        raise RuntimeError("tests failed:\n" + "\n".join(lines[-15:]))
    return [Row("tests marked gpu", time.perf_counter() - started, note=lines[-1].strip("= "))]


def short_demo(bench, limit=DEMO_SECONDS):
    """Run a short demo on the device, in a folder of its own. Args: limit: seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "tools/demo.py", "OUTPUT_DIR", folder, *SHORT_DEMO, "DEVICE", bench.device.type]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            said, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()         # which it passes on to the script that runs
            said, errors = process.communicate()
            raise RuntimeError(f"the demo took more than {limit:.0f} s; it said last:\n{said[-500:]}") from None
        if process.returncode:
            raise RuntimeError(f"the demo failed:\n{said[-500:]}\n{errors[-1500:]}")
        stages = json.loads((Path(folder) / "table.json").read_text())[0]
    return [Row("short demo, all stages", time.perf_counter() - started, note="in percent:"),
            *(Row(f"demo, {stage}", note=", ".join(f"{name} {100 * value:.1f}" for name, value in found.items()))
              for stage, found in stages.items())]


PARTS = {
    "peaks": Part(parts.peaks, 10),
    "step": Part(parts.steps, 30),
    "embedding": Part(parts.embeddings, 25),
    "clustering": Part(parts.clustering, 30),
    "augmentation": Part(parts.augmentation, 5),
    "memories": Part(parts.memories, 5),
    "prompts": Part(parts.prompts, 10),
    "epoch": Part(parts.whole_epoch, 80),
    "tests": Part(gpu_tests, 60, ("pytest", "hypothesis", "ftfy")),
    "demo": Part(short_demo, 120, ("ftfy", "jinja2", "matplotlib", "tensorboard")),
    "metrics": Part(parts.metrics, 10),
    "compiled": Part(partial(parts.compiled_step, precision="bf16"), 80),
    "compiled-released": Part(partial(parts.compiled_step, precision="released"), 60),
}


def run_parts(chosen, bench, budget):
    """Run parts in turn, for some seconds. Returns: {part: `Results`}; sentences on what was left out; what failed."""
    started, found, left_out, failed = time.perf_counter(), {}, [], []
    for name, part in chosen.items():
        left = budget - (time.perf_counter() - started)
        missing = [package for package in part.needs if importlib.util.find_spec(package) is None]
        if missing or left < part.expected:
            left_out.append(f"Left out: {name}: " + (f"{' and '.join(missing)} not installed" if missing else
                                                     f"{part.expected} s expected, {max(left, 0):.0f} s left"))
            continue
        print(f"{name}:", flush=True)
        try:
            rows = part.run(bench)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            failed.append(f"Failed: {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        found[name] = Results(name)
        found[name].add(*rows)
    return found, left_out, failed


def epoch_seconds(rows):
    """Add up the parts of an epoch, nothing overlapped: precision -> seconds, where all parts were measured.

    Args: rows: part -> [`Row`].
    """
    found = {}
    for precision in parts.PRECISIONS:
        costs = [min((row.ours * row.per_epoch for row in rows.get(name, ())
                      if row.precision == precision and row.per_epoch and row.ours), default=None)
                 for name in ("step", "embedding")]      # the fastest way that was measured
        if None not in costs and "clustering" in rows:
            found[precision] = sum(costs) + sum(row.ours * row.per_epoch for name in (
                "clustering", "augmentation", "memories", "metrics") for row in rows.get(name, ()))
    return found


def save(folder, found, sentences):
    """Write what was found, with the shares of an epoch, into a folder. Args: as `run_parts` returns them."""
    epochs = epoch_seconds({name: results.rows for name, results in found.items()})
    for row in (row for results in found.values() for row in results.rows):
        whole = epochs.get(row.precision or SHARED_BY)
        row.of_epoch = row.ours * row.per_epoch / whole if whole and row.ours and row.per_epoch else None
    hours = ", ".join(f"{name} {seconds * EPOCHS / 3600:.3g} hours" for name, seconds in epochs.items())
    notes = [f"Both stages, {EPOCHS} epochs, the sum of the parts above without any overlap: {hours}. Shares of an "
             f"epoch: of the row's precision, else of {SHARED_BY}."] if epochs else []
    harness.write(folder / f"gpu-{harness.device_stem()}.json",
                  {name: results.section() for name, results in found.items()}, [*notes, *sentences])
    print("\n".join([*notes, *sentences]))


def main(words=None):
    """Run what the command line asks for."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no part begins")
    parser.add_argument("--folder", type=Path, default=harness.FOLDER, help="of the results")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("make gpu found no GPU; " + (unused_gpu_warning() or "expected one. To try the command, "
                                                     "run python -m benchmarks.gpu --small --device cpu"))
    bench = parts.Bench(pick_device(arguments.device), parts.SMALL if arguments.small else parts.FULL)
    found, left_out, failed = run_parts({name: part for name, part in PARTS.items() if name in arguments.only}, bench,
                                        60 * arguments.minutes)
    save(arguments.folder, found, [*left_out, *failed])
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_user_error(main)
