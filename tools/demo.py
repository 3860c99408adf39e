"""Run the whole pipeline on synthetic people, and print one table of what each stage gained.

    python tools/demo.py [KEY VALUE ...] [--seeds 1 2 3]

Runs test.py, train_prepare.py, train_clip.py with configs/demo.yml, as a user would, and test.py after each stage.
With several seeds the table holds mean and standard deviation over them.
"""
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, exit_on_user_error  # noqa: E402
from utils.processes import run_script  # noqa: E402

CONFIG = "configs/demo.yml"
TESTED = ("baseline_clip", "prepare_last", "model_last")
STAGES = ("baseline CLIP", "after train_prepare", "after train_clip")
NUMBERS = {"rank1": "Rank-1", "rank10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}


def run(script, *arguments):
    """Run one of the project's scripts; stop with its exit code if it fails."""
    command = [sys.executable, script, *map(str, arguments)]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    code = run_script(command, cwd=ROOT)
    if code:
        sys.exit(code)


def run_seed(seed, overrides, folder):
    """Run all stages with one seed, in folder/seedN, and read the metrics.json of each, in the order of STAGES."""
    output = Path(folder) / f"seed{seed}"
    settings = ["SEED", seed, *overrides]
    run("test.py", "--config_file", CONFIG, *settings, "OUTPUT_DIR", output)
    run("train_prepare.py", "--config_file", CONFIG, *settings, "OUTPUT_DIR", output)
    run("test.py", "--resume_path", output / "prepare_last.pth")
    run("train_clip.py", "--config_file", CONFIG, *settings, "OUTPUT_DIR", output)
    run("test.py", "--resume_path", output / "model_last.pth")
    run("-m", "utils.report", output)       # once more, now with the last test in its table
    folders = [next((ROOT / output / "tests").glob(f"{name}-*")) for name in TESTED]
    return [json.loads((folder / "metrics.json").read_text()) for folder in folders]


def table(seeds):
    """Format the percentages of every stage: mean over the seeds, and the standard deviation if there are several."""
    lines = [" " * 20 + "".join(f"{name:>16}" for name in NUMBERS.values())]
    for stage, results in zip(STAGES, zip(*seeds)):
        cells = []
        for key in NUMBERS:
            values = 100 * np.array([r[key] for r in results])
            cells.append(f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""))
        lines.append(f"{stage:<20}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main():
    """Run the demo for every seed and print the table."""
    parser = Parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--folder", default="runs/demo", help="of all output, default: runs/demo")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that differ from configs/demo.yml")
    arguments = parser.parse_intermixed_args()
    started = time.time()
    results = [run_seed(seed, arguments.overrides, arguments.folder) for seed in arguments.seeds]
    print(f"\n{results[0][0]['protocol']}, last epoch, {len(results)} seed(s), {time.time() - started:.0f} s\n")
    print(table(results))
    (ROOT / arguments.folder / "table.json").write_text(json.dumps([
        {stage: {key: found[key] for key in NUMBERS} for stage, found in zip(STAGES, seed)} for seed in results]))
    print("\nwritten:")
    folders = [os.path.relpath(ROOT / arguments.folder / f"seed{seed}") for seed in arguments.seeds]
    for folder in folders:
        print(f"  {folder}/  pseudo_labels/ prepare_last.pth model_last.pth log.txt config.yml "
              "tests/*/metrics.json")
    print("to look at: " + " ".join(f"{folder}/report.html" for folder in folders))


if __name__ == "__main__":
    exit_on_user_error(main)
