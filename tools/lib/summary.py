"""The table of many runs: mean and standard deviation per method, stage and mode, beside released figures."""
import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from configs.defaults import as_dict, load_config
from configs.groups import REPEATS, group_names
from processor.evaluate import RANKS
from processor.run.folder import MODEL_FILES
from report.results import is_of_run
from report.run_files import read_rows
from tools.lib.grid import ALL_TESTED, BASELINE, RECORD, read_record, results_file
from utils.errors import UserError
from utils.settings import flat

NUMBERS = (*(f"rank{r}" for r in RANKS), "mAP", "mINP")
SHOWN = {"rank1": "Rank-1", "mAP": "mAP", "mINP": "mINP"}       # in text and LaTeX; CSV holds all
STAGES = {BASELINE: "baseline CLIP", "prepare": "train_prepare", "finetune": "train_clip"}
STAGE_OF = {name: stage for stage, name in MODEL_FILES.items()}     # start of a checkpoint's name -> stage
LAST, BEST = "last epoch", "best on test"
DEFAULTS = flat(as_dict(load_config()))


class Spread(NamedTuple):
    """A mean, and the standard deviation of the sample (n - 1); None for a single value."""

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values):
        """Return that of a list of numbers."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """A line of the table; numbers are name -> `Spread`, in percent but for those that were logged."""

    method: str
    stage: str
    mode: str
    protocol: str = ""
    n: int = 1              # runs
    last: dict = field(default_factory=dict)        # of the last epoch
    best: dict = field(default_factory=dict)        # of the epoch that was best on test data
    unstated: dict = field(default_factory=dict)    # published without saying of which epoch
    logged: dict = field(default_factory=dict)      # of metrics.jsonl
    source: str = ""        # of published figures; "" for our runs


def _published(source, stage, mode, **numbers):
    """Make a `Row` of published figures. Args: numbers: "last", "best" or "unstated" -> {number: percent}."""
    return Row(source, stage, mode, source=source, **{
        selection: {name: Spread(value) for name, value in found.items()} for selection, found in numbers.items()})


README, ABSTRACT = "README of the released code", "abstract of the paper"
PUBLISHED = {       # data set -> rows. Nothing else is the authors' number.
    "SYSU-MM01": (_published(README, "train_prepare", "all", best={"rank1": 50.02, "mAP": 45.52}),
                  _published(README, "train_clip", "all", best={"rank1": 55.31, "mAP": 50.38}),
                  _published(ABSTRACT, "train_clip", "not stated", unstated={"rank1": 54.0})),
    "RegDB": (_published(README, "train_clip", "trial 1, direction not stated", best={"rank1": 71.94, "mAP": 67.63}),),
}


@dataclass(frozen=True)
class RunResults:
    """What the folder of one run holds."""

    folder: Path
    settings: dict      # "SECTION.KEY" -> value; the default of a key that is younger than the run
    varied: tuple       # keys that its grid varied
    error: str          # why the grid's last try failed; ""
    tested: tuple       # checkpoints whose tests are expected
    tests: dict         # (checkpoint's name, mode) -> record of test.py
    logged: dict        # "prepare" or "finetune" -> line of metrics.jsonl, of its last epoch


def read_runs(folders, protocol):
    """Read the runs in folders, each a run's or one that holds runs: [`RunResults`], the same folder once.

    Args: protocol: "python", "original-1" or "original-10".
    Raises: UserError: a folder holds no run, or is one and holds more; runs are of different data sets or protocols;
        no test of the protocol is there.
    """
    found = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; expected that of a run or of a grid of runs")
        below = [path for path in sorted(folder.iterdir()) if path.is_dir() and _is_run(path)
                 and not path.name.startswith("old-")]      # what --fresh kept
        if below and _is_run(folder):
            raise UserError(f"{folder} is the folder of a run and holds others ({below[0].name}"
                            f"{', ...' if below[1:] else ''}); expected one or the other. Name those that you mean, as "
                            f"in {below[0]}")
        inside = below or ([folder] if _is_run(folder) else [])
        if not inside:
            raise UserError(f"{folder} holds no run (no {RECORD} or config.yml, nor its folders); expected the folder "
                            "of a run or of a grid of runs")
        found |= {path.resolve(): path for path in inside}
    runs = [_read_run(path, protocol) for path in found.values()]
    _refuse_mixtures(runs)
    if not any(run.tests for run in runs):
        raise UserError(f"{', '.join(map(str, folders))}: no test with TEST.MODE both and protocol {protocol} was "
                        "found in any run; " + "; ".join(missing(runs)))
    return runs


def _is_run(folder):
    return (folder / RECORD).is_file() or (folder / "config.yml").is_file()


def _read_run(folder, protocol):
    record, config, tests = read_record(folder), folder / "config.yml", {}
    settings = flat(yaml.safe_load(config.read_text())) if config.is_file() else record["settings"]
    for checkpoint in (BASELINE, *ALL_TESTED):
        path = results_file(folder, checkpoint, protocol)
        content = json.loads(path.read_text()) if path.is_file() else {"results": []}
        tests |= {(checkpoint, found["mode"]): found for found in content.get("results", [content])
                  if is_of_run(found)}
    last = {row["stage"]: row for row in read_rows(folder)}
    return RunResults(folder, DEFAULTS | settings, tuple(record.get("varied", ())), record.get("error", ""),
                      tuple(record.get("tested", ALL_TESTED)), tests,
                      {stage: last[stage] for stage in MODEL_FILES if stage in last})


def _refuse_mixtures(runs):
    """Refuse runs whose numbers do not compare. Raises UserError."""
    first = runs[0]
    protocols = {}
    for run in runs:
        name, expected = run.settings.get("DATASET.NAME"), first.settings.get("DATASET.NAME")
        if name != expected:
            raise UserError(f"{run.folder} is of the data set {name}, {first.folder} of {expected}; expected one data "
                            "set. Make a table for each")
        for (_, mode), record in run.tests.items():
            trial = run.settings.get("DATASET.TRIAL")
            if record.get("dataset_trial", trial) != trial:
                raise UserError(f"{run.folder} was trained on trial {trial} and holds results of trial "
                                f"{record['dataset_trial']}; expected its own. Test it again")
            protocol, (other, folder) = _protocol(record), protocols.setdefault(mode, (_protocol(record), run.folder))
            if protocol != other:
                raise UserError(f"{run.folder} was tested with the protocol {protocol!r}, {folder} with {other!r}; "
                                "their numbers do not compare. Test them alike, or make a table for each")


def _protocol(record):
    """Name the protocol of a record without the split of the data set."""
    return record["protocol"].replace(f" trial {record.get('dataset_trial')}", "")


def summarise(runs, logged=()):
    """Average over the runs of each method, stage and mode, and add the published figures of the data set: [`Row`].

    Args: logged: names of numbers in metrics.jsonl that are averaged too. Raises: UserError: no run has such a number.
    """
    varied = {key for run in runs for key in run.varied} - set(REPEATS)
    names, groups = group_names([run.settings for run in runs], DEFAULTS, varied), {}
    for method, run in zip(names, runs):
        for (checkpoint, mode), record in run.tests.items():
            name, _, which = checkpoint.rpartition("_")
            stage, which = (BASELINE, "last") if checkpoint == BASELINE else (STAGE_OF[name], which)
            key = method, mode, list(STAGES).index(stage)
            groups.setdefault(key, {"last": [], "best": []})[which].append((record, run.logged.get(stage, {})))
    rows = []
    for (method, mode, stage), found in sorted(groups.items()):
        records, lines = zip(*(found["last"] or found["best"]))
        numbers = {which: {name: Spread.of([100 * record[name] for record, _ in found[which]]) for name in NUMBERS}
                   for which in found if found[which]}
        rows.append(Row(method, list(STAGES.values())[stage], mode, _protocol(records[0]), len(records), **numbers,
                        logged={name: Spread.of([line[name] for line in lines]) for name in logged
                                if all(name in line for line in lines)}))
    for name in logged:
        if not any(name in row.logged for row in rows):
            known = sorted({key for run in runs for line in run.logged.values() for key, value in line.items()
                            if isinstance(value, (int, float))})
            raise UserError(f"--logged names {name}, which is no number of all runs' metrics.jsonl; expected one of "
                            f"{', '.join(known)}")
    dataset = next(record["dataset"] for run in runs for record in run.tests.values())
    return [*rows, *PUBLISHED.get(dataset, ())]


def missing(runs):
    """Name in sentences the runs that failed, and those without all of their tests."""
    lines = []
    for run in runs:
        absent = [name for name in run.tested if not any(checkpoint == name for checkpoint, _ in run.tests)]
        if run.error:
            lines.append(f"failed: {run.folder}: {run.error}")
        elif absent:
            lines.append(f"missing: {run.folder} has no test of {', '.join(absent)}")
    return lines or [f"no run of {len(runs)} is missing"]


def _logged(rows):
    """List the names of logged numbers that rows have."""
    return list(dict.fromkeys(name for row in rows for name in row.logged))


def _cells(row, between, nothing, logged):
    """Write the numbers of a row as text: last epoch, best on test, what was logged."""
    for numbers, names in ((row.last, SHOWN), (row.best, SHOWN), (row.logged, logged)):
        for name in names:
            mean, deviation = numbers.get(name, (None, None))
            yield nothing if mean is None else f"{mean:.2f}" + (f"{between}{deviation:.2f}" if deviation is not None
                                                                else "")


def as_text(rows):
    """Format the table for a console."""
    logged = _logged(rows)
    head = ("method", "stage", "mode", "n", *SHOWN.values(), *SHOWN.values(), *logged)
    lines = [(row.method, row.stage, row.mode, str(row.n), *_cells(row, " ± ", "–", logged))
             for row in rows if not row.unstated]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    group = sum(widths[4:7]) + 4
    above = " " * (sum(widths[:4]) + 8) + "".join(f"{title:^{group}}  " for title in (LAST, BEST))
    text = ["  ".join(f"{cell:{'<' if i < 3 else '>'}{width}}" for i, (cell, width) in enumerate(zip(line, widths)))
            for line in (head, *lines)]
    return "\n".join([above.rstrip(), *text, "", "percent, mean ± standard deviation (n - 1) over n runs",
                      *_protocols(rows), *_notes(rows), ""])


def _protocols(rows):
    """List each mode with its protocol."""
    return list(dict.fromkeys(f"{row.mode}: {row.protocol}" for row in rows if row.protocol))


def _notes(rows):
    """Write the published figures that have no place in a column."""
    return [f"{row.source}: " + ", ".join(f"{SHOWN[name]} {found.mean}" for name, found in row.unstated.items())
            + f" ({row.stage}; mode and selection not stated)" for row in rows if row.unstated]


def as_latex(rows):
    """Format the table for LaTeX with booktabs."""
    def escape(text):
        return "".join({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"}.get(c, c) for c in text)

    logged, span = _logged(rows), len(SHOWN)
    columns = 2 * span + len(logged)
    names = " & ".join([*SHOWN.values(), *SHOWN.values(), *map(escape, logged)])
    titles = " & ".join([*(rf"\multicolumn{{{span}}}{{c}}{{{title}}}" for title in (LAST, BEST)), *[""] * len(logged)])
    notes = [rf"\multicolumn{{{4 + columns}}}{{l}}{{\footnotesize {escape(line)}}} \\" for line in _protocols(rows)]
    body = [" & ".join((escape(row.method), escape(row.stage), escape(row.mode), str(row.n),
                        *_cells(row, r" $\pm$ ", "--", logged))) + r" \\" for row in rows if not row.unstated]
    return "\n".join([*(f"% {note}" for note in _notes(rows)),
                      rf"\begin{{tabular}}{{lllr{'r' * columns}}}", r"\toprule", rf" & & & & {titles} \\",
                      rf"Method & Stage & Mode & $n$ & {names} \\", r"\midrule", *body,
                      r"\midrule", *notes, r"\bottomrule", r"\end{tabular}", ""])


def as_csv(rows):
    """Format all numbers as CSV: a mean and a standard deviation each."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    kinds = {LAST: NUMBERS, BEST: NUMBERS, "not stated": NUMBERS, "logged": _logged(rows)}
    table.writerow(["method", "stage", "mode", "protocol", "n", "source",
                    *(f"{kind} {name}{part}" for kind in kinds for name in kinds[kind] for part in ("", " sd"))])
    for row in rows:
        numbers = [value for found, names in zip((row.last, row.best, row.unstated, row.logged), kinds.values())
                   for name in names for value in found.get(name, (None, None))]
        table.writerow([row.method, row.stage, row.mode, row.protocol, row.n, row.source,
                        *("" if value is None else f"{value:.4f}" for value in numbers)])
    return text.getvalue()


FORMS = {"text": as_text, "csv": as_csv, "latex": as_latex}
