"""Run the whole pipeline on synthetic people, and print one table of what each stage gained.

    python tools/demo.py [--config_file configs/demo.yml] [KEY VALUE ...] [--seeds 1 2 3]

Runs train_prepare.py and train_clip.py with configs/demo.yml, as a user would, and test.py on baseline CLIP and after
each stage, for every seed in turn (tools/lib/grid.py). The same command again resumes, and skips what is finished.
configs/demo_vit.yml is the same demo with a vision transformer.
"""
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error, whole_number  # noqa: E402

CONFIG = "configs/demo.yml"
TESTED = ("baseline", "prepare_last", "model_last")
STAGES = ("baseline CLIP", "after train_prepare", "after train_clip")
NUMBERS = {"rank1": "Rank-1", "rank10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}


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
    parser.add_argument("--seeds", type=whole_number(0, 2 ** 63 - 1), nargs="+", default=[1], help="default: 1")
    parser.add_argument("--config_file", help=f"default: {CONFIG}")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that differ from the file's")
    arguments = parser.parse_intermixed_args()
    from tools.lib.grid import make_grid  # slow: after the command line was read
    from tools.lib.schedule import run_here

    here, started = Path.cwd(), time.time()
    config_file = os.path.abspath(arguments.config_file) if arguments.config_file else CONFIG
    os.chdir(ROOT)                  # the paths in configs/demo.yml start there
    experiments = make_grid(config_file, arguments.overrides, sorted(set(arguments.seeds)), tested=TESTED)
    failed = run_here(experiments)
    if failed:
        raise UserError("; ".join(f"{name}: {error}" for name, error in failed))
    results = [[json.loads(experiment.results(name)[0].read_text()) for name in TESTED] for experiment in experiments]
    print(f"\n{results[0][0]['protocol']}, last epoch, {len(results)} seed{'s' * (len(results) > 1)}, "
          f"{time.time() - started:.0f} s\n\n{table(results)}")
    folders = [os.path.relpath(experiment.folder.resolve(), here) for experiment in experiments]
    print("\nreport: " + " ".join(f"{folder}/report.html" for folder in folders) + " (open in a browser)")
    print("beside it: log.txt, pseudo_labels/, prepare_last.pth, model_last.pth, tests/*/metrics.json")


if __name__ == "__main__":
    exit_on_user_error(main)
