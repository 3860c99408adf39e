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
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("ftfy") is None:        # open_clip imports it; plain ASCII needs no repair
    sys.modules["ftfy"] = types.SimpleNamespace(fix_text=lambda text: text)

import torch  # noqa: E402

from benchmarks import gpu_parts as parts  # noqa: E402
from benchmarks import harness  # noqa: E402
from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402
from utils.runtime import pick_device, unused_gpu_warning  # noqa: E402

MINUTES = 8.0
SHARED_BY = "bf16"              # the precision of whose epoch the other parts are a share
SHORT_DEMO = ("PREPARE.EPOCHS", "4", "METHOD.CROSS_EPOCH", "3", "PROMPT.EPOCHS", "5", "FINETUNE.EPOCHS", "6")
DEMO_SECONDS = 240.0            # after which the short demo is given up, so that the parts after it have their turn
REFERENCE = harness.FOLDER / "demo-short-cpu.json"
RESOURCES = ("arithmetic", "memory", "host")
HEAD = ("what", "time", "share of an epoch", *RESOURCES, "bounded by", "note")


@dataclass(frozen=True)
class Part:
    """A piece of the measurement. `run(bench, seconds left)` returns its rows."""

    name: str
    run: object
    expected: float             # seconds on a fast GPU; it is left out when less time is left
    needs: tuple = ()           # packages


def measured(function, *arguments):
    """Wrap a part of benchmarks/gpu_parts.py, which needs no limit."""
    return lambda bench, left: function(bench, *arguments)


def gpu_tests(bench, left):
    """Run the tests marked `gpu` in a process of their own."""
    started = time.perf_counter()
    found = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"], cwd=ROOT,
                           capture_output=True, text=True, timeout=left)
    lines = found.stdout.strip().splitlines() or [found.stderr[-500:]]
    if found.returncode:
        raise RuntimeError("tests failed:\n" + "\n".join(lines[-15:]))
    return [parts.Row("tests marked gpu", time.perf_counter() - started, note=lines[-1].strip("= "))]


def run_demo(left, *overrides):
    """Run a short demo in a folder of its own: seconds, and {stage: {number: value}}."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "tools/demo.py", "OUTPUT_DIR", folder, *SHORT_DEMO, *overrides]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            said, errors = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            process.terminate()         # which it passes on to the script that runs
            said, errors = process.communicate()
            raise RuntimeError(f"the demo took more than {left:.0f} s; it said last:\n{said[-500:]}") from None
        if process.returncode:
            raise RuntimeError(f"the demo failed:\n{said[-500:]}\n{errors[-1500:]}")
        return time.perf_counter() - started, json.loads((Path(folder) / "table.json").read_text())[0]


def short_demo(bench, left):
    """Run the short demo on the device, and set its results beside the CPU's."""
    seconds, found = run_demo(min(left, DEMO_SECONDS), "DEVICE", bench.device.type)
    reference = json.loads(REFERENCE.read_text()) if REFERENCE.is_file() else {"results": {}}
    rows = [parts.Row("short demo, all stages", seconds, note="in percent:")]
    for stage, numbers in found.items():
        cpu = reference["results"].get(stage, {})
        rows.append(parts.Row(f"demo, {stage}", 0.0, note=", ".join(
            f"{name} {100 * value:.1f}" + (f" (CPU {100 * cpu[name]:.1f})" if cpu else "")
            for name, value in numbers.items())))
    return rows


PARTS = (
    Part("peaks", measured(parts.peaks), 10),
    Part("step", measured(parts.steps), 30),
    Part("embedding", measured(parts.embeddings), 25),
    Part("clustering", measured(parts.clustering), 30),
    Part("augmentation", measured(parts.augmentation), 5),
    Part("memories", measured(parts.memories), 5),
    Part("prompts", measured(parts.prompts), 10),
    Part("epoch", measured(parts.whole_epoch), 80),
    Part("tests", gpu_tests, 60, ("pytest", "hypothesis", "ftfy")),
    Part("demo", short_demo, 120, ("ftfy", "jinja2", "matplotlib", "tensorboard")),
    Part("metrics", measured(parts.metrics), 10),
    Part("compiled", measured(parts.compiled_step, "bf16"), 80),
    Part("compiled-released", measured(parts.compiled_step, "released"), 60),
)


def run_parts(chosen, bench, budget):
    """Run parts in turn. Returns: {part: [Row]}; sentences on what was left out; on what failed."""
    started, rows, left_out, failed = time.perf_counter(), {}, [], []
    for part in chosen:
        left = budget - (time.perf_counter() - started)
        missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
        if missing or left < part.expected:
            left_out.append(f"{part.name}: " + (f"{' and '.join(missing)} not installed" if missing else
                                                f"{part.expected} s expected, {max(left, 0):.0f} s left"))
            print(f"left out: {left_out[-1]}", flush=True)
            continue
        begun = time.perf_counter()
        try:
            rows[part.name] = part.run(bench, left)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            failed.append(f"{part.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            print(f"failed: {failed[-1]}", flush=True)
        for row in rows.get(part.name, ()):
            print(f"  {row.what}: {harness.seconds(row.seconds)}  {row.note}", flush=True)
        print(f"{part.name}: {time.perf_counter() - begun:.1f} s", flush=True)
    return rows, left_out, failed


def epoch_seconds(rows):
    """Add up the parts of an epoch, nothing overlapped: precision -> seconds, where all parts were measured."""
    found = {}
    for precision in parts.PRECISIONS:
        costs = []
        for name in ("step", "embedding"):      # the fastest way that was measured
            costs.append(min((row.seconds * row.per_epoch for row in rows.get(name, ())
                              if row.precision == precision and row.per_epoch and row.seconds), default=None))
        if None not in costs and "clustering" in rows:
            found[precision] = sum(costs) + sum(row.seconds * row.per_epoch for name in (
                "clustering", "augmentation", "memories", "metrics") for row in rows.get(name, ()))
    return found


def table(rows, epochs):
    """Format all rows in Markdown. Args: epochs: of `epoch_seconds`."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    for part in rows.values():
        for row in part:
            whole = epochs.get(row.precision or SHARED_BY)
            share = f"{row.seconds * row.per_epoch / whole:.1%}" if row.per_epoch and whole else ""
            used = [f"{row.shares[name]:.0%}" if name in row.shares else "" for name in RESOURCES]
            bound = max(row.shares, key=row.shares.get) if row.shares else ""
            cells = (row.what, harness.seconds(row.seconds or None), share, *used, bound, row.note)
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def markdown(about, rows, left_out, failed):
    """Write the whole document."""
    epochs = epoch_seconds(rows)
    lines = [f"# {about['device']}: `make gpu`", "",
             ", ".join(f"{name} {about[name]}" for name in ("commit", "python", "torch", "cuda", "numpy", "faiss"))
             + f"; {about['time']}.", "",
             "`arithmetic`, `memory`, `host`: the least time that each of them needs, divided by the time measured; "
             "the largest bounds the row. Peaks are those of the first rows. `memory` counts what unfused kernels "
             f"move. Shares of an epoch: of the row's precision, else of {SHARED_BY}.", "", *table(rows, epochs), ""]
    if epochs:
        lines += [f"Both stages, {parts.EPOCHS} epochs, the sum of the parts above without any overlap: " + ", ".join(
            f"{name} {seconds * parts.EPOCHS / 3600:.3g} hours" for name, seconds in epochs.items()) + ".", ""]
    for name, sentences in (("Left out", left_out), ("Failed", failed)):
        lines += [f"{name}: {sentence}." for sentence in sentences]
    return "\n".join(lines) + "\n"


def environment():
    """Return `harness.environment` with CUDA's and FAISS's versions."""
    try:
        import faiss
        search = f"{faiss.__version__} ({faiss.get_num_gpus() if hasattr(faiss, 'get_num_gpus') else 0} GPUs)"
    except ImportError:
        search = "not installed: torch searches"
    return {**harness.environment(), "cuda": torch.version.cuda or "none", "faiss": search}


def save(folder, rows, left_out, failed):
    """Write JSON and Markdown into a folder, and return the text."""
    about = environment()
    text = markdown(about, rows, left_out, failed)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"environment": about, "epoch_seconds": epoch_seconds(rows), "left_out": left_out, "failed": failed,
               "parts": {name: [asdict(row) for row in part] for name, part in rows.items()}}
    stem = folder / f"gpu-{harness.device_stem()}"
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    return text


def save_reference():
    """Run the short demo on this CPU and keep its results, which a GPU's are set beside."""
    seconds, results = run_demo(3600, "DEVICE", "cpu")
    REFERENCE.write_text(json.dumps({"environment": harness.environment(), "settings": SHORT_DEMO, "seconds": seconds,
                                     "results": results}, indent=1) + "\n")


def main(words=None):
    """Run what the command line asks for."""
    parser = Parser(__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no part begins")
    parser.add_argument("--folder", type=Path, default=harness.FOLDER, help="of the results")
    parser.add_argument("--demo-reference", action="store_true", help="run the short demo on this CPU and keep it")
    arguments = parser.parse_args(words)
    if arguments.demo_reference:
        return save_reference()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("make gpu found no GPU; " + (unused_gpu_warning() or "expected one. To try the command, "
                                                     "run python -m benchmarks.gpu --small --device cpu"))
    bench = parts.Bench(pick_device(arguments.device), parts.SMALL if arguments.small else parts.FULL)
    chosen = [part for part in PARTS if part.name in arguments.only]
    found = run_parts(chosen, bench, 60 * arguments.minutes)
    print(save(arguments.folder, *found))
    if found[-1]:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_user_error(main)
