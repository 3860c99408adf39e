"""Kill and resume the demo again and again; its result must stay that of a run that nothing interrupted.

    python tools/dev/soak.py [--minutes 20] [KEY VALUE ...]

First train_prepare.py and train_clip.py run undisturbed; their memory per epoch must not grow. Then, until the minutes
are over, the same is trained in new folders under runs/soak, hit by SIGKILL or SIGTERM at random moments and resumed
with the same command. Prints what happened; the exit code is 1 if a result differs or the memory grows.
"""
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
EPOCHS = ("PREPARE.EPOCHS", "4", "PROMPT.EPOCHS", "4", "FINETUNE.EPOCHS", "4", "METHOD.CROSS_EPOCH", "2",
          "TEST.EVERY", "1")
LONGEST_WAIT = 20.0         # seconds between the start of a run's work and the signal
GROWTH = 0.05               # of the memory from the second epoch to the last, that is still none
# One thread: sums are then added in the same order in every process.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def start(script, folder, overrides):
    """Start a script of the demo in a folder: its process, output appended to FOLDER/out.txt."""
    command = [sys.executable, script, "--config_file", str(FOLDER / "demo.yml"), *EPOCHS, "CHECKPOINT.MINUTES", "0.05",
               *overrides, "OUTPUT_DIR", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "out.txt", "a") as out:
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=out, stderr=out)


def finish(process, folder):
    """Wait for a process that nobody disturbs; stop the soak if it fails."""
    if process.wait():
        sys.exit(f"failed with exit code {process.returncode}; its output is in {folder / 'out.txt'}")


def disturb(process, folder, rng):
    """Send SIGKILL or SIGTERM at a random moment of a run's work: "killed", "stopped", or "" if it ended before."""
    log, wait = folder / "log.txt", rng.uniform(0, LONGEST_WAIT)
    size = log.stat().st_size if log.is_file() else 0
    while process.poll() is None and (log.stat().st_size if log.is_file() else 0) == size:
        time.sleep(0.05)                    # it imports and reads data
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        process.send_signal(number)
        code = process.wait()
        if code == -signal.SIGTERM and (folder / "out.txt").read_text().splitlines()[-1].startswith("page to look at"):
            return ""                       # all was done, the interpreter was on its way out
        if code not in (-signal.SIGKILL, 128 + signal.SIGTERM, 0):
            sys.exit(f"{number.name} led to exit code {code}; its output is in {folder / 'out.txt'}")
        return "" if code == 0 else "killed" if number == signal.SIGKILL else "stopped"
    finish(process, folder)
    return ""


def disturbed_run(folder, overrides, rng, counts):
    """Both scripts, each hit and resumed until it comes through; counts: what happened, added to in place."""
    for script in SCRIPTS:
        while event := disturb(start(script, folder, overrides), folder, rng):
            counts[event] += 1
            counts["resumed"] += 1


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


def memory_per_epoch(folder):
    """Read the peak of the process in MiB until the end of each epoch of an undisturbed run: {stage: [...]}."""
    from report.run_files import read_rows  # slow: after the words were read

    memory = {}
    for row in read_rows(folder):
        memory.setdefault(row["stage"], []).append(1024 * row["memory_gb"])
    return memory


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
        finish(start(script, whole, arguments.overrides), whole)
    grows = False
    for stage, values in memory_per_epoch(whole).items():
        growth = values[-1] / values[min(1, len(values) - 1)] - 1
        grows |= growth > GROWTH
        print(f"{stage}: memory per epoch {' '.join(f'{v:.0f}' for v in values)} MiB, {growth:+.1%} from the second "
              "to the last", flush=True)
    counts, runs, differ = {"killed": 0, "stopped": 0, "resumed": 0}, 0, []
    while not runs or time.time() - started < 60 * arguments.minutes:
        runs += 1
        disturbed_run(FOLDER / f"run{runs}", arguments.overrides, rng, counts)
        differ += differences(FOLDER / f"run{runs}", whole)
        verdict = f"differs in {', '.join(differ[:5])}" if differ else "equal to the undisturbed run"
        happened = ", ".join(f"{number} {what}" for what, number in counts.items())
        print(f"run {runs}: {happened} so far; {verdict}", flush=True)
        if not differ:
            shutil.rmtree(FOLDER / f"run{runs}")
    print(f"{time.time() - started:.0f} s, {runs} runs: {'FAILED' if differ or grows else 'all equal, no growth'}")
    sys.exit(1 if differ or grows else 0)


if __name__ == "__main__":
    exit_on_user_error(main)
