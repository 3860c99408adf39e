"""The whole pipeline on drawn people, and one table of what each stage gained.

    python tools/demo.py [KEY VALUE ...] [--seeds 1 2 3]

Runs test.py, train_prepare.py, train_clip.py with configs/demo.yml, as a user would, and test.py after each stage.
With several seeds the table holds mean and standard deviation over them.
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/demo.yml"
STAGES = ("CLIP as it is", "after train_prepare", "after train_clip")
NUMBERS = {"rank1": "Rank-1", "rank10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}


def run(script, *arguments):
    """Run one of the project's scripts; stop with its exit code if it fails."""
    command = [sys.executable, script, *map(str, arguments)]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)


def run_seed(seed, overrides):
    """All stages with one seed: the metrics.json of each stage, in the order of STAGES."""
    output = Path("runs/demo") / f"seed{seed}"
    settings = ["SEED", seed, *overrides]
    folders = [output / name for name in ("test_clip_as_it_is", "test_after_prepare", "test_after_clip")]
    run("test.py", "--config_file", CONFIG, *settings, "OUTPUT_DIR", folders[0])
    run("train_prepare.py", "--config_file", CONFIG, *settings, "OUTPUT_DIR", output)
    run("test.py", "--resume_path", output / "prepare_last.pth", "OUTPUT_DIR", folders[1])
    run("train_clip.py", "--config_file", CONFIG, *settings, "OUTPUT_DIR", output)
    run("test.py", "--resume_path", output / "model_last.pth", "OUTPUT_DIR", folders[2])
    run("-m", "utils.report", output)       # once more, now with the last test in its table
    return [json.loads((ROOT / folder / "metrics.json").read_text()) for folder in folders]


def table(seeds):
    """Percentages of every stage: mean over the seeds, and the standard deviation where there are several."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    arguments = parser.parse_args()
    started = time.time()
    results = [run_seed(seed, arguments.overrides) for seed in arguments.seeds]
    print(f"\n{results[0][0]['protocol']}, last epoch, {len(results)} seed(s), {time.time() - started:.0f} s\n")
    print(table(results))
    print("\nwritten:")
    for seed in arguments.seeds:
        print(f"  runs/demo/seed{seed}/  pseudo_labels/ prepare_last.pth model_last.pth log.txt config.yml "
              "test_*/metrics.json")
    print("to look at: " + " ".join(f"runs/demo/seed{seed}/report.html" for seed in arguments.seeds))


if __name__ == "__main__":
    main()
