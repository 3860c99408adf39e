"""From a number to a table: runs that differ in seed, trial or settings, and mean ± standard deviation over them.

    python tools/experiments.py run   [--config_file configs/sysu.yml] [--seeds 1 2 3] [--trials 1-10]
                                      [--vary KEY VALUE VALUE ...] [--at_once N] [KEY VALUE ...]
    python tools/experiments.py run   ... --cluster slurm [--partition NAME] [--gpus 1] [--cpus 8] [--hours 12]
    python tools/experiments.py plan  (as run)
    python tools/experiments.py table FOLDER [FOLDER ...] [--protocol python] [--csv | --latex]

`run` makes every run of the grid in a folder of its own in OUTPUT_DIR, named by what differs: train_prepare.py,
train_clip.py, then test.py on the last and the best checkpoint of both. The same command again resumes; what is
finished is skipped, a failed run does not stop the others. `plan` measures a few steps of each stage here and says what
the grid will cost. `table` reads the folders of runs, or of grids.
"""
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from configs.defaults import as_dict, flat, load_config  # noqa: E402
from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402

RANGE = re.compile(r"(\d+)(?:-(\d+))?$")
KEY = re.compile(r"[A-Z]+(\.[A-Z_0-9]+)+(=|$)")     # how a key looks, known or not


def parse_arguments(arguments=None):
    """Read the command line: options, with `overrides` the KEY VALUE words. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("action", choices=("run", "plan", "table"))
    parser.add_argument("--config_file", help="a .yml file with settings that differ from configs/defaults.py")
    parser.add_argument("--seeds", nargs="+", default=[], help="one run for each, as in 1 2 3 or 1-3")
    parser.add_argument("--trials", nargs="+", default=[], help="RegDB: one run for each split, as in 1-10")
    parser.add_argument("--vary", nargs="+", action="append", default=[], metavar="WORD",
                        help="a key and its values: one run for each; may be given several times")
    parser.add_argument("--baseline", action="store_true", help="test baseline CLIP too")
    parser.add_argument("--at_once", type=int, default=1, help="runs at the same time on this machine; default: 1")
    parser.add_argument("--cluster", choices=("slurm",), help="queue a job for every run instead")
    parser.add_argument("--partition", help="of the cluster; default: the cluster's own")
    parser.add_argument("--gpus", type=int, default=1, help="of each job; default: 1")
    parser.add_argument("--cpus", type=int, default=8, help="of each job; default: 8")
    parser.add_argument("--hours", type=float, default=12, help="after which a job is queued again; default: 12")
    parser.add_argument("--protocol", default="python", help="table: whose galleries; default: python")
    parser.add_argument("--csv", action="store_true", help="table: print it as CSV, all numbers")
    parser.add_argument("--latex", action="store_true", help="table: print it as LaTeX")
    options, overrides = parser.parse_known_args(arguments)
    strange = [word for word in overrides if word.startswith("--")]
    if strange:
        parser.error(f"unknown option {strange[0]}")
    if options.csv and options.latex:
        parser.error("--csv and --latex are two forms of the table; choose one")
    for name in ("at_once", "gpus", "cpus", "hours"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name} is {getattr(options, name)}; expected a number above 0")
    # these options are greedy: what follows their values are KEY VALUE words
    options.seeds, more = split_numbers("--seeds", options.seeds)
    options.trials, other = split_numbers("--trials", options.trials)
    varied = [split_values(words) for words in options.vary]
    options.vary = [(key, values) for key, values, _ in varied]
    options.overrides = [*more, *other, *(word for _, _, rest in varied for word in rest), *overrides]
    return options


def split_numbers(name, words):
    """Split words into the numbers that they begin with, ranges expanded, and the rest. Raises UserError: none."""
    count = next((i for i, word in enumerate(words) if not RANGE.match(word)), len(words))
    numbers = set()
    for first, last in (RANGE.match(word).groups() for word in words[:count]):
        numbers |= set(range(int(first), int(last or first) + 1))
    if words and not numbers:
        raise UserError(f"{name} {' '.join(words)} names no number; expected some, as in {name} 1 2 3 or {name} 1-3")
    return sorted(numbers), words[count:]


def split_values(words):
    """Split the words of a --vary into key, values, and what follows from the next key on.

    Raises UserError: the key is unknown, or has no value.
    """
    key, known = words[0], flat(as_dict(load_config()))
    end = next((i for i, word in enumerate(words[1:], start=1) if word in known or KEY.match(word)), len(words))
    if key not in known:
        load_config(None, [key, "0"])       # says which key is nearest
    if end == 1:
        raise UserError(f"--vary {key} names no value; expected some, as in --vary CLUSTER.EPS 0.5 0.6")
    return key, words[1:end], words[end:]


def grid_of(options):
    """Make the grid that the command line describes, its data sets opened once: [`Experiment`]. Raises UserError."""
    from data.registry import open_dataset
    from processor.grid import BASELINE, TESTED, make_grid

    experiments = make_grid(options.config_file, options.overrides, options.seeds, options.trials, options.vary,
                            ((BASELINE,) if options.baseline else ()) + TESTED)
    data_sets = {tuple(c.DATASET[key] for key in ("NAME", "ROOT", "TRIAL", "CHECK_COUNTS"))
                 for c in (experiment.config for experiment in experiments)}
    for arguments in sorted(data_sets) if options.action == "run" else ():
        open_dataset(*arguments)
    return experiments


def run(options):
    """Run the grid, here or on a cluster, and print its table. Raises UserError: runs failed."""
    from processor.grid import grid_folder
    from processor.schedule import run_here, slurm_executor, submit

    folder, started = grid_folder(options.config_file, options.overrides), time.time()
    if options.cluster:
        executor = slurm_executor(folder / "jobs", folder.name, options.partition, options.gpus, options.cpus,
                                  options.hours)
        experiments = grid_of(options)
        for experiment, job in zip(experiments, submit(experiments, executor)):
            print(f"{experiment.name}: job {job.job_id}")
        print(f"when they are finished: python tools/experiments.py table {folder}")
        return
    experiments = grid_of(options)
    print(f"{len(experiments)} runs in {folder}: {', '.join(experiment.name for experiment in experiments)}")
    failed = run_here(experiments, options.at_once)
    finished = len(experiments) - len(failed)
    print(f"\n{finished} of {len(experiments)} runs are finished, {time.time() - started:.0f} s\n")
    if finished:
        print_table([experiment.folder for experiment in experiments], experiments[0].config.TEST.PROTOCOL)
    if failed:
        sentences = "; ".join(f"{name}: {error}" for name, error in failed)
        raise UserError(f"{len(failed)} of {len(experiments)} runs failed: {sentences}")


def print_table(folders, protocol, form="text"):
    """Print the table of runs, and what is missing to stderr. Args: form: "text", "csv" or "latex"."""
    from processor import summary

    runs = summary.read_runs(folders, protocol)
    print(summary.FORMS[form](summary.summarise(runs)), end="")
    sys.stdout.flush()
    print("\n".join(summary.missing(runs)), file=sys.stderr)


def main(arguments=None):
    """Do what the command line asks for."""
    options = parse_arguments(arguments)
    if options.action == "table":
        if not options.overrides:
            raise UserError("table names no folder; expected those of runs or of a grid, as in table runs/sysu")
        print_table(options.overrides, options.protocol, "csv" if options.csv else "latex" if options.latex else "text")
    elif options.action == "plan":
        from processor.plan import print_plan

        print_plan(grid_of(options), options.at_once)
    else:
        run(options)


if __name__ == "__main__":
    exit_on_user_error(main)
