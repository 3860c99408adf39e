"""From a number to a table: runs that differ in seed, trial or settings, their mean ± standard deviation, and whether
one method is better than another.

    python tools/experiments.py run     [--config_file configs/sysu.yml] [--seeds 1 2 3] [--trials 1-10]
                                        [--vary KEY VALUE VALUE ...] [--only prepare] [--at_once N] [KEY VALUE ...]
    python tools/experiments.py run     ... --cluster slurm [--partition NAME] [--gpus 1] [--cpus 8] [--hours 12]
    python tools/experiments.py table   FOLDER [FOLDER ...] [--protocol python] [--logged NAME]
                                        [--published [METHOD ...]] [--names NAME NAME ...] [--csv | --latex]
    python tools/experiments.py compare FOLDER [FOLDER ...]

`run` makes every run of the grid in a folder of its own in OUTPUT_DIR, named by what differs: train_prepare.py,
train_clip.py, then test.py on the last and the best checkpoint of both; with `--only prepare` without train_clip.py.
The same command again resumes; what is finished is skipped, a failed run does not stop the others. `table` reads the
folders of runs, or of grids. --names stand for our methods in the order of the table; --latex is the table of a paper.
`compare` says whether each method is better than the first one (of a grid's by name), with 95 % intervals; it also
takes two tests/* folders.
"""
import math
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from configs.settings import SETTINGS  # noqa: E402
from utils.errors import Parser, UserError, existing, exit_on_user_error, real_number, shown, whole_number  # noqa: E402

MAX_RUNS = 1000     # more are a slip
RANGE = re.compile(r"(\d+)(?:-(\d+))?$")
PUBLISHED = ("cclnet", "pgm", "rpnr", "sdcl")       # methods with figures in docs/reference/published
RUNS = existing("folder", "that of a run or of a grid of runs")
KEY = re.compile("|".join([r"[A-Z]+(\.[A-Z_0-9]+)+(=|$)", *(f"{setting.name}$" for setting in SETTINGS)]))


def parse_arguments(arguments=None):
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("action", choices=("run", "table", "compare"))
    parser.add_argument("--config_file", type=existing("file", "a .yml file such as configs/sysu.yml"),
                        help="a .yml file with settings that differ from the defaults")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE | FOLDER", help="settings of all runs, or folders")
    parser.add_argument("--seeds", nargs="+", default=[], help="one run for each, as in 1 2 3 or 1-3")
    parser.add_argument("--trials", nargs="+", default=[], help="RegDB: one run for each split, as in 1-10")
    parser.add_argument("--vary", nargs="+", action="append", default=[], metavar="KEY VALUE VALUE ...",
                        help="one run for each value; may be given several times")
    parser.add_argument("--only", choices=("prepare",), help="train and test with train_prepare.py alone")
    parser.add_argument("--through", type=existing("file", "a script such as mine.py of docs/extending.md"),
                        help="script that starts ours; one with parts of your own gives it itself")
    parser.add_argument("--at_once", type=whole_number(1, 1000), default=1,
                        help="runs at the same time on this machine; default: 1")
    parser.add_argument("--cluster", choices=("slurm",), help="queue a job for every run instead")
    parser.add_argument("--partition", help="of the cluster; default: the cluster's own")
    parser.add_argument("--gpus", type=whole_number(0, 1000), default=1, help="of each job; default: 1")
    parser.add_argument("--cpus", type=whole_number(1, 10_000), default=8, help="of each job; default: 8")
    parser.add_argument("--hours", type=real_number(0.1, 10_000), default=12,
                        help="after which a job is queued again; default: 12")
    parser.add_argument("--protocol", default="python", help="table: whose galleries; default: python")
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME",
                        help="table: of our methods in their order; name the folders before")
    parser.add_argument("--logged", action="append", default=[], metavar="NAME",
                        help="table: a number of metrics.jsonl, of the last epoch, as in --logged link_accuracy; "
                             "may be given several times")
    parser.add_argument("--published", nargs="*", choices=PUBLISHED, metavar="METHOD",
                        help=f"table: what the authors of {', '.join(PUBLISHED)} published, or of those named; "
                             "text and CSV hold that of cclnet anyway")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", dest="form", action="store_const", const="csv", default="text",
                      help="table: print it as CSV, all numbers")
    form.add_argument("--latex", dest="form", action="store_const", const="latex",
                      help="table: print that of a paper as LaTeX")
    options = parser.parse_intermixed_args(arguments)
    for name in ("seeds", "trials"):
        values = take_values(f"--{name}", getattr(options, name), RANGE.match, options.overrides)
        setattr(options, name, sorted({number for word in values for number in numbers_of(f"--{name}", word)}))
    options.vary = [(key, take_values(f"--vary {key}", words, lambda word: not KEY.match(word), options.overrides))
                    for key, *words in options.vary]
    return options


def take_values(name, words, belongs, others):
    """Take the values among the words of an option; the KEY VALUE words behind them go to others, a list.

    Args: belongs: word -> whether it is a value. Raises UserError: an option that was given has none.
    """
    count = next((i for i, word in enumerate(words) if not belongs(word)), len(words))
    if not count and (words or name.startswith("--vary")):
        raise UserError(f"{' '.join([name, *words[:1]])} names no value; expected some, as in --seeds 1 2 3, "
                        "--trials 1-10 or --vary CLUSTER.EPS 0.5 0.6")
    others += words[count:]
    return words[:count]


def numbers_of(name, word):
    """List the numbers of a word such as 4 or 1-3. Raises UserError: a range is empty or vast."""
    first, last = RANGE.match(word).groups()
    found = range(int(first), int(last or first) + 1)
    if not 0 < len(found) <= MAX_RUNS:
        raise UserError(f"{name} {word} names {f'more than {MAX_RUNS:,} runs' if found else 'none'}; expected a range "
                        "such as 1-3")
    return found


def run(options):
    """Run the grid, here or on a cluster, and print its table. Raises UserError: runs failed."""
    from data.registry import open_dataset
    from tools.lib.grid import ALL_TESTED, TESTED, grid_folder, make_grid
    from tools.lib.schedule import Job, run_here, slurm_executor

    started = time.time()
    count = math.prod(len(values) or 1 for values in (options.seeds, options.trials, *dict(options.vary).values()))
    if count > MAX_RUNS:
        raise UserError(f"the grid has {count:,} runs; expected {MAX_RUNS:,} at most. Give fewer seeds or values")
    folder = grid_folder(options.config_file, options.overrides)
    if options.cluster:
        executor = slurm_executor(folder / "jobs", folder.name, options.partition, options.gpus, options.cpus,
                                  options.hours)
    experiments = make_grid(options.config_file, options.overrides, options.seeds, options.trials, options.vary,
                            TESTED.get(options.only, ALL_TESTED), options.through)
    for arguments in sorted({tuple(experiment.config.DATASET[key] for key in ("NAME", "ROOT", "TRIAL", "CHECK_COUNTS"))
                             for experiment in experiments}):
        open_dataset(*arguments)        # what is wrong with it is told before anything is written
    for experiment in experiments:
        experiment.note()
    if options.cluster:
        for experiment in experiments:
            print(f"{experiment.name}: job {executor.submit(Job(experiment)).job_id}")
        print(shown(f"when they are finished: python tools/experiments.py table {folder}"))
        return
    names = ", ".join(experiment.name for experiment in experiments)
    print(shown(f"{count} run{'s' * (count > 1)} in {folder}: {names}"))
    failed = run_here(experiments, options.at_once)
    print(f"\n{count - len(failed)} of {count} runs are finished, {time.time() - started:.0f} s\n")
    if len(failed) < count:
        print_table([experiment.folder for experiment in experiments], experiments[0].config.TEST.PROTOCOL)
    if failed:
        sentences = "; ".join(f"{name}: {error}" for name, error in failed)
        raise UserError(f"{len(failed)} of {count} runs failed: {sentences}")


def print_table(folders, protocol, form="text", logged=(), others=("cclnet",), names=()):
    """Print the table of runs, and what is missing to stderr. Args: form: of `FORMS`; the rest: as `summarise`."""
    from tools.lib import summary
    from tools.lib.forms import FORMS

    runs = summary.read_runs(folders, protocol)
    print(shown(FORMS[form](summary.summarise(runs, logged, others, names))), end="", flush=True)
    print(shown("\n".join(summary.missing(runs))), file=sys.stderr)


def print_comparison(folders):
    """Print whether each group of runs is better than the first. Raises: UserError: as `report.paired.compare`."""
    from report.paired import INTERVAL, compare, group_runs
    from tools.lib.summary import find_runs

    (first, ours), *others = group_runs(find_runs(folders)).items()
    if not others:
        raise UserError(f"all runs are of one method, {first}; expected those of another one too. Name their folder")
    for name, theirs in others:
        print(shown("\n".join([f"{name} against {first}, percentage points", *map(str, compare(ours, theirs)), ""])))
    print(INTERVAL)


def main(arguments=None):
    """Do what the command line asks for."""
    options = parse_arguments(arguments)
    if options.action == "run":
        return run(options)
    folders = [RUNS(folder) for folder in options.overrides]
    if not folders:
        raise UserError(f"{options.action} names no folder; expected those of runs or of grids, as in "
                        f"{options.action} runs/sysu")
    if options.action == "compare":
        return print_comparison(folders)
    others = PUBLISHED if options.published == [] else options.published or ()
    if options.form != "latex":
        others = dict.fromkeys(["cclnet", *others])
    print_table(folders, options.protocol, options.form, options.logged, others, options.names)


if __name__ == "__main__":
    exit_on_user_error(main)
