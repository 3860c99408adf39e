"""The table of many runs: mean and standard deviation per method, stage and mode, beside released figures."""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.groups import REPEATS, groups_of
from report.published import figures, method_name
from report.results import scored_of
from report.run_files import GRID_FILE, MODEL_NAMES, NUMBERS, read_run
from tools.lib.grid import ALL_TESTED, BASELINE
from utils.errors import UserError

STAGES = {BASELINE: "baseline", "prepare": "train_prepare", "finetune": "train_clip"}
LAST, BEST, UNSTATED, LOGGED = "last epoch", "best on test", "not stated", "logged"     # kinds of numbers
KINDS = {"last": LAST, "best": BEST}        # end of a checkpoint's name -> of which epoch its numbers are


class Row(NamedTuple):
    """A line of the table. `numbers`: (kind, name) -> mean and standard deviation (n - 1; None for a single value).

    They are in percent but for those that were logged.
    """

    method: str
    stage: str
    mode: str
    numbers: dict
    protocol: str = ""
    n: int = 1              # runs
    source: str = ""        # of published figures; "" for our runs


def published(dataset, method):
    """List what the authors of a method published for a data set: [`Row`], none where they published nothing."""
    return [Row(f"{method_name(method)}, {line['backbone']}", line["stage"], line["mode"],
                {(line["selection"], name): (float(line[name]), None) for name in NUMBERS if line.get(name)},
                source=f"{line['source']}, {line['repository']}") for line in figures(dataset, method)]


def find_runs(folders):
    """Read the runs in folders, each a run's or one that holds runs: [`RunFiles`], the same folder once.

    Raises: UserError: a folder holds no run, or is one and holds more.
    """
    found = {}
    for folder in map(Path, folders):
        below = [path for path in sorted(folder.iterdir()) if is_run(path) and not path.name.startswith("old-")]
        if below and is_run(folder):        # "old-" is what --fresh kept
            raise UserError(f"{folder} is the folder of a run and holds others ({below[0].name}"
                            f"{', ...' if below[1:] else ''}); expected one or the other. Name those that you mean, as "
                            f"in {below[0]}")
        if not below and not is_run(folder):
            raise UserError(f"{folder} holds no run (no {GRID_FILE} or config.yml, nor its folders); expected the "
                            "folder of a run or of a grid of runs")
        found |= {path.resolve(): path for path in below or [folder]}
    return [read_run(folder) for folder in found.values()]


def is_run(folder):
    """Tell whether a folder is that of a run, finished or not."""
    return (folder / GRID_FILE).is_file() or (folder / "config.yml").is_file()


def read_runs(folders, protocol):
    """Read the runs in folders, as `find_runs`, with their tests: [(`RunFiles`, tests)].

    The tests are {(checkpoint's name, mode): record}, those of the run's own weights that were done as the run would
    have done them.

    Args: protocol: "python", "original-1" or "original-10".
    Raises: UserError: as `find_runs`; runs are of different data sets or protocols; no test of the protocol is there.
    """
    runs = [(run, {(tested.of, tested.record["mode"]): tested.record for tested in run.tests
                   if tested.of in (BASELINE, *MODEL_NAMES) and not tested.differs
                   and tested.record["identity"]["TEST.PROTOCOL"] == protocol})
            for run in find_runs(folders)]
    _refuse_mixtures(runs)
    if not any(tests for _, tests in runs):
        raise UserError(f"{', '.join(map(str, folders))}: no test with protocol {protocol} was found in any run; "
                        + "; ".join(missing(runs)))
    return runs


def _refuse_mixtures(runs):
    """Refuse runs whose numbers do not compare. Raises UserError."""
    seen = {}
    for run, tests in runs:
        trial, trained = run.settings["DATASET.TRIAL"], run.known("train_images")
        facts = [("", run.settings["DATASET.NAME"], "trained on the data set"),
                 *([(trial, trained, "trained on images with the digest")] if trained else [])]
        for (_, mode), record in tests.items():
            tested = record["identity"]
            facts += [(mode, tested["TEST.TRIALS"], "tested with TEST.TRIALS"),
                      (trial, tested["images"], "tested on images with the digest"),
                      ((mode, trial), tested.get("galleries"), "tested with galleries of the digest")]
        for key, found, what in facts:
            other, folder = seen.setdefault((what, key), (found, run.folder))
            if found != other:
                raise UserError(f"{run.folder} was {what} {found}; of {folder} that is {other}, and their numbers do "
                                "not compare. Train and test them alike, or make a table for each")


def summarise(runs, logged=(), others=(), names=()):
    """Average over the runs of each method, stage and mode, and add what was published: [`Row`], methods as they come.

    Args: runs: of `read_runs`; logged: names of numbers in metrics.jsonl that are averaged too, where all runs of a row
        have them; others: methods whose authors' figures are added; names: for our methods, in their order.
    Raises: UserError: no row has such a number, runs are the same, nothing was published, or names do not fit.
    """
    groups, stages = {}, list(STAGES)
    varied = {key for run, _ in runs for key in run.varied} - set(REPEATS)
    named = {stage: groups_of({run.folder: run.settings_of(stage) for run, _ in runs}, varied) for stage in stages}
    for run, tests in runs:
        last = {row["stage"]: row for row in run.epochs}
        for (checkpoint, mode), record in tests.items():
            stage, kind = MODEL_NAMES.get(checkpoint, BASELINE), KINDS.get(checkpoint.rpartition("_")[2], LAST)
            of_mode = groups.setdefault(named[stage][run.folder], {}).setdefault((mode, stages.index(stage)), {})
            of_mode.setdefault(kind, []).append((record, last.get(stage, {})))
    if names and (len(names) != len(groups) or len(set(names)) < len(names)):
        raise UserError(f"--names gives {' and '.join(names)}; expected a name of its own for each of {len(groups)} "
                        f"methods: {'; '.join(groups)}")
    rows = [_row(name, STAGES[stages[stage]], mode, found, logged)
            for name, modes in zip(names or groups, groups.values()) for (mode, stage), found in sorted(modes.items())]
    for name in logged:
        if not any((LOGGED, name) in row.numbers for row in rows):
            known = sorted({key for run, _ in runs for line in run.epochs for key, value in line.items()
                            if isinstance(value, (int, float))})
            raise UserError(f"--logged names {name}, which is no number of all runs' metrics.jsonl; expected one of "
                            f"{', '.join(known)}")
    dataset = next(record["dataset"] for _, tests in runs for record in tests.values())
    for method in others:
        theirs = published(dataset, method)
        if not theirs and method != "cclnet":      # which text and CSV show unasked
            raise UserError(f"--published: no figures of {method} on {dataset} are known; expected runs on "
                            "SYSU-MM01 or RegDB")
        rows += theirs
    return rows


def _row(method, stage, mode, found, logged):
    """Average the tests of one row. Args: found: kind -> [(record, last line of metrics.jsonl)]; logged: as above."""
    records, lines = zip(*(found.get(LAST) or found[BEST]))
    values = {(kind, name): [100 * record[name] for record, _ in found[kind]] for kind in (LAST, BEST) if kind in found
              for name in NUMBERS}
    values |= {(LOGGED, name): [line[name] for line in lines] for name in logged if all(name in line for line in lines)}
    numbers = {key: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else None) for key, v in values.items()}
    protocol = records[0]["protocol"].replace(f" trial {records[0]['identity']['DATASET.TRIAL']}", "")
    return Row(method, stage, mode, numbers, "; ".join(filter(None, (protocol, scored_of(records[0])))), len(records))


def missing(runs):
    """Name in sentences the runs that failed, and those without all of their tests."""
    lines = []
    for run, tests in runs:
        absent = [name for name in run.grid.get("tested", ALL_TESTED) if not any(name == of for of, _ in tests)]
        if run.grid.get("error"):
            lines.append(f"failed: {run.folder}: {run.grid['error']}")
        elif absent:
            lines.append(f"missing: {run.folder} has no test of {', '.join(absent)}")
    return lines or [f"no run of {len(runs)} is missing"]
