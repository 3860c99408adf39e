"""Kill and resume the demo again and again; its result must stay that of a run that nothing interrupted.

    python tools/dev/soak.py [--minutes 20] [KEY VALUE ...]

First train_prepare.py and train_clip.py run undisturbed; their memory per epoch must not grow. Then, until the minutes
are over, the same is trained in new folders under runs/soak, hit by a signal at random moments and resumed with the
same command. Prints what happened; the exit code is 1 if a result differs or the memory grows.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, exit_on_user_error, real_number, whole_number  # noqa: E402

FOLDER = ROOT / "runs" / "soak"
SCRIPTS = ("train_prepare.py", "train_clip.py")
SHORT = ("PREPARE.EPOCHS", "4", "PROMPT.EPOCHS", "4", "FINETUNE.EPOCHS", "4", "METHOD.CROSS_EPOCH", "2",
         "TEST.EVERY", "1")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
LONGEST_WAIT = 20.0         # seconds between the start of a run's work and the signal
GROWTH = 0.05               # of the memory from the second epoch to the last, that is still none
# One thread: sums are then added in the same order in every process.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def run(script, folder, overrides, rng=None):
    """Run a script of the demo in a folder, its output appended to FOLDER/out.txt.

    Args: rng: sends a signal at a random moment of the run's work; None: nothing disturbs it.
    Returns: whether it came through. Raises SystemExit: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, script, "--config_file", str(FOLDER / "demo.yml"), *SHORT, *overrides, "OUTPUT_DIR",
               str(folder)]
    with open(folder / "out.txt", "a") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=out, stderr=out)
    number = rng and rng.choice(SIGNALS)
    if rng:
        size = log_size(folder)
        while process.poll() is None and log_size(folder) == size:
            time.sleep(0.05)                    # it imports and reads data
        try:
            process.wait(rng.uniform(0, LONGEST_WAIT))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    code = process.wait()
    if code and (not rng or code not in (-number, 128 + number)):
        sys.exit(f"{script} ended with exit code {code}; its output is in {folder / 'out.txt'}")
    return code == 0


def log_size(folder):
    """Return the bytes of a run's log."""
    log = folder / "log.txt"
    return log.stat().st_size if log.is_file() else 0


def differences(folder, expected):
    """Name the results that are not the same to the bit."""
    import numpy as np  # slow: after the words were read
    import torch

    found = [path.name for path in (expected / "pseudo_labels").glob("*.npy")
             if not np.array_equal(np.load(path), np.load(folder / "pseudo_labels" / path.name))]
    for name in ("prepare_last.pth", "model_last.pth"):
        ours, theirs = (torch.load(f / name, map_location="cpu", weights_only=True) for f in (folder, expected))
        found += [f"{name} {k}" for k, v in theirs["state_dict"].items() if not torch.equal(v, ours["state_dict"][k])]
        found += [f"{name} metrics"] if ours["metrics"] != theirs["metrics"] else []
    return found


def growing_stages(folder):
    """Print the peak of the process until the end of each epoch of an undisturbed run, and name stages that grow."""
    memory = {}
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        memory.setdefault(row["stage"], []).append(1024 * row["memory_gb"])
    growth = {stage: values[-1] / values[min(1, len(values) - 1)] - 1 for stage, values in memory.items()}
    for stage, values in memory.items():
        print(f"{stage}: memory per epoch {' '.join(f'{v:.0f}' for v in values)} MiB, {growth[stage]:+.1%} from the "
              "second to the last", flush=True)
    return [stage for stage, share in growth.items() if share > GROWTH]


def main():
    """Kill and resume as long as the command line says."""
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=real_number(0, 100_000), default=20, help="default: 20")
    parser.add_argument("--seed", type=whole_number(0, 10 ** 9), default=0,
                        help="of the moments of the signals; default: 0")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that differ from configs/demo.yml")
    arguments = parser.parse_intermixed_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "demo.yml", FOLDER)      # who edits it meanwhile does not disturb the soak
    rng, started, whole = random.Random(arguments.seed), time.time(), FOLDER / "whole"
    for script in SCRIPTS:
        run(script, whole, arguments.overrides)
    grows, signals, runs, differ = growing_stages(whole), 0, 0, []
    while not runs or time.time() - started < 60 * arguments.minutes:
        runs += 1
        folder = FOLDER / f"run{runs}"
        for script in SCRIPTS:
            while not run(script, folder, arguments.overrides, rng):
                signals += 1
        found = differences(folder, whole)
        differ += found
        verdict = f"differs in {', '.join(found[:5])}" if found else "equal to the undisturbed run"
        print(f"run {runs}: {signals} signals so far; {verdict}", flush=True)
        if not found:
            shutil.rmtree(folder)
    print(f"{time.time() - started:.0f} s, {runs} runs: {'FAILED' if differ or grows else 'all equal, no growth'}")
    sys.exit(1 if differ or grows else 0)


if __name__ == "__main__":
    exit_on_user_error(main)
