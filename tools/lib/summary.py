"""The table of many runs: mean and standard deviation per method, stage and mode, beside released figures."""
import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs.groups import REPEATS, group_names, refuse_twins
from report.results import scored_of
from report.run_files import GRID_FILE, MODEL_NAMES, RATES, read_run
from tools.lib.grid import ALL_TESTED, BASELINE
from utils.errors import UserError

SHOWN = {"rank1": "Rank-1", "mAP": "mAP", "mINP": "mINP"}       # in text and LaTeX; CSV holds all
STAGES = {BASELINE: "baseline", "prepare": "train_prepare", "finetune": "train_clip"}
LAST, BEST, UNSTATED, LOGGED = "last epoch", "best on test", "not stated", "logged"     # kinds of numbers
FIGURES = Path(__file__).resolve().parents[2] / "docs/reference/published/figures.csv"
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
    with open(FIGURES, encoding="utf-8", newline="") as file:
        return [Row(f"{line['method']}, {line['backbone']}: {line['source']}", line["stage"], line["mode"],
                    {(line["selection"], name): (float(line[name]), None) for name in SHOWN if line[name]},
                    source=f"{line['source']}, {line['repository']}")
                for line in csv.DictReader(file) if (line["dataset"], line["method"]) == (dataset, method)]


def read_runs(folders, protocol):
    """Read the runs in folders, each a run's or one that holds runs: [(`RunFiles`, its tests)], the same folder once.

    The tests are {(checkpoint's name, mode): record}, those of the run's own weights that were done as the run would
    have done them.

    Args: protocol: "python", "original-1" or "original-10".
    Raises: UserError: a folder holds no run, or is one and holds more; runs are of different data sets or protocols;
        no test of the protocol is there.
    """
    found = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; expected that of a run or of a grid of runs")
        below = [path for path in sorted(folder.iterdir()) if _is_run(path) and not path.name.startswith("old-")]
        if below and _is_run(folder):       # "old-" is what --fresh kept
            raise UserError(f"{folder} is the folder of a run and holds others ({below[0].name}"
                            f"{', ...' if below[1:] else ''}); expected one or the other. Name those that you mean, as "
                            f"in {below[0]}")
        inside = below or ([folder] if _is_run(folder) else [])
        if not inside:
            raise UserError(f"{folder} holds no run (no {GRID_FILE} or config.yml, nor its folders); expected the "
                            "folder of a run or of a grid of runs")
        found |= {path.resolve(): path for path in inside}
    runs = [(run, {(tested.of, tested.record["mode"]): tested.record for tested in run.tests
                   if tested.of in (BASELINE, *MODEL_NAMES) and not tested.differs
                   and tested.record["identity"]["TEST.PROTOCOL"] == protocol})
            for run in map(read_run, found.values())]
    _refuse_mixtures(runs)
    if not any(tests for _, tests in runs):
        raise UserError(f"{', '.join(map(str, folders))}: no test with protocol {protocol} was found in any run; "
                        + "; ".join(missing(runs)))
    return runs


def _is_run(folder):
    return (folder / GRID_FILE).is_file() or (folder / "config.yml").is_file()


def _refuse_mixtures(runs):
    """Refuse runs whose numbers do not compare. Raises UserError."""
    seen = {}
    for run, tests in runs:
        name, (expected, folder) = run.settings["DATASET.NAME"], seen.setdefault(
            "", (run.settings["DATASET.NAME"], run.folder))
        if name != expected:
            raise UserError(f"{run.folder} is of the data set {name}, {folder} of {expected}; expected one data set. "
                            "Make a table for each")
        trial, trained = run.settings["DATASET.TRIAL"], run.known("train_images")
        facts = [(trial, trained, "trained on images with the digest")] if trained else []
        for (_, mode), record in tests.items():
            tested = record["identity"]
            facts += [(mode, tested["TEST.TRIALS"], "tested with TEST.TRIALS"),
                      (trial, tested["images"], "tested on images with the digest"),
                      ((mode, trial), tested.get("galleries"), "tested with galleries of the digest")]
        for key, found, what in facts:
            other, folder = seen.setdefault((what, key), (found, run.folder))
            if found != other:
                raise UserError(f"{run.folder} was {what} {found}, {folder} with {other}; their numbers do not "
                                "compare. Train and test them alike, or make a table for each")


def _protocol(record):
    """Name the protocol of a record without the split of the data set."""
    return record["protocol"].replace(f" trial {record['identity']['DATASET.TRIAL']}", "")


def summarise(runs, logged=(), others=()):
    """Average over the runs of each method, stage and mode, and add what CCLNet's authors published: [`Row`].

    Args: runs: of `read_runs`; logged: names of numbers in metrics.jsonl that are averaged too, where all runs of a row
        have them; others: methods whose authors' figures are added as well.
    Raises: UserError: no row has such a number, two runs are the same one, or nothing was published of a method.
    """
    names, groups = _names(runs), {}
    for run, tests in runs:
        last = {row["stage"]: row for row in run.epochs}
        for (checkpoint, mode), record in tests.items():
            stage, kind = MODEL_NAMES.get(checkpoint, BASELINE), KINDS.get(checkpoint.rpartition("_")[2], LAST)
            group = groups.setdefault((names[run.folder, stage], mode, list(STAGES).index(stage)), {LAST: [], BEST: []})
            group[kind].append((record, last.get(stage, {})))
    rows = []
    for (method, mode, stage), found in sorted(groups.items()):
        records, lines = zip(*(found[LAST] or found[BEST]))
        values = {(kind, name): [100 * record[name] for record, _ in found[kind]]
                  for kind in found if found[kind] for name in RATES}
        values |= {(LOGGED, name): [line[name] for line in lines] for name in logged
                   if all(name in line for line in lines)}
        numbers = {key: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else None)
                   for key, v in values.items()}
        rows.append(Row(method, list(STAGES.values())[stage], mode, numbers,
                        "; ".join(filter(None, (_protocol(records[0]), scored_of(records[0])))), len(records)))
    for name in logged:
        if not any((LOGGED, name) in row.numbers for row in rows):
            known = sorted({key for run, _ in runs for line in run.epochs for key, value in line.items()
                            if isinstance(value, (int, float))})
            raise UserError(f"--logged names {name}, which is no number of all runs' metrics.jsonl; expected one of "
                            f"{', '.join(known)}")
    dataset = next(record["dataset"] for _, tests in runs for record in tests.values())
    for method in ("cclnet", *others):
        figures = published(dataset, method)
        if method in others and not figures:
            raise UserError(f"--published names {method}, of which no figures on {dataset} are known; expected runs on "
                            "SYSU-MM01 or RegDB")
        rows += figures
    return rows


def _names(runs):
    """Name the method of every stage of every run by the settings that it was trained with: {(folder, stage): text}."""
    varied = {key for run, _ in runs for key in run.varied}
    settings = {(run.folder, stage): run.settings_of(stage) for run, _ in runs for stage in STAGES}
    names = dict(zip(settings, group_names(list(settings.values()), varied - set(REPEATS))))
    for stage in STAGES:
        refuse_twins({run.folder: (names[run.folder, stage], settings[run.folder, stage]) for run, _ in runs})
    return names


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


def _columns(rows, names, kinds=(LAST, BEST)):
    """List the (kind, name) pairs of a table's columns; what was logged stands last."""
    logged = dict.fromkeys(key for row in rows for key in row.numbers if key[0] == LOGGED)
    return [*((kind, name) for kind in kinds for name in names), *logged]


def _lines(rows, columns, between, nothing):
    """Write rows as lists of text, without those that have no number in a column."""
    for row in rows:
        cells = []
        for mean, deviation in (row.numbers.get(key, (None, None)) for key in columns):
            cells.append(nothing if mean is None else f"{mean:.2f}" if deviation is None else
                         f"{mean:.2f}{between}{deviation:.2f}")
        if row.numbers.keys() & set(columns):
            yield [row.method, row.stage, row.mode, str(row.n), *cells]


def _protocols(rows):
    """List each mode with its protocol."""
    return list(dict.fromkeys(f"{row.mode}: {row.protocol}" for row in rows if row.protocol))


def _notes(rows):
    """Write the published figures that have no place in a column."""
    return [f"{row.source}: {SHOWN[name]} {mean} ({row.stage}; mode and selection not stated)"
            for row in rows for (kind, name), (mean, _) in row.numbers.items() if kind == UNSTATED]


def as_text(rows):
    """Format the table for a console."""
    columns = _columns(rows, SHOWN)
    head = ["method", "stage", "mode", "n", *(SHOWN.get(name, name) for _, name in columns)]
    lines = [head, *_lines(rows, columns, " ± ", "–")]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    group = sum(widths[4:7]) + 4
    above = " " * (sum(widths[:4]) + 8) + "".join(f"{title:^{group}}  " for title in (LAST, BEST))
    text = ["  ".join(f"{cell:{'<' if i < 3 else '>'}{width}}" for i, (cell, width) in enumerate(zip(line, widths)))
            for line in lines]
    return "\n".join([above.rstrip(), *text, "", "percent, mean ± standard deviation (n - 1) over n runs",
                      *_protocols(rows), *_notes(rows), ""])


def as_latex(rows):
    """Format the table for LaTeX with booktabs."""
    def line(*cells):
        return " & ".join("".join(rf"\{c}" if c in "_%&#" else c for c in cell) for cell in cells)

    columns, span = _columns(rows, SHOWN), len(SHOWN)
    titles = " & ".join([*(rf"\multicolumn{{{span}}}{{c}}{{{title}}}" for title in (LAST, BEST)),
                         *[""] * (len(columns) - 2 * span)])
    head = line("Method", "Stage", "Mode", "$n$", *(SHOWN.get(name, name) for _, name in columns))
    notes = [rf"\multicolumn{{{4 + len(columns)}}}{{l}}{{\footnotesize {line(text)}}}" for text in _protocols(rows)]
    body = [line(*cells) for cells in _lines(rows, columns, r" $\pm$ ", "--")]
    ended = [f"{text} \\\\" for text in (f" & & & & {titles}", head, *body, *notes)]
    return "\n".join([*(f"% {note}" for note in _notes(rows)), rf"\begin{{tabular}}{{lllr{'r' * len(columns)}}}",
                      r"\toprule", *ended[:2], r"\midrule", *ended[2:2 + len(body)], r"\midrule",
                      *ended[2 + len(body):], r"\bottomrule", r"\end{tabular}", ""])


def as_csv(rows):
    """Format all numbers as CSV: a mean and a standard deviation each."""
    text, columns = io.StringIO(), _columns(rows, RATES, (LAST, BEST, UNSTATED))
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["method", "stage", "mode", "protocol", "n", "source",
                    *(f"{kind} {name}{part}" for kind, name in columns for part in ("", " sd"))])
    for row in rows:
        table.writerow([row.method, row.stage, row.mode, row.protocol, row.n, row.source,
                        *("" if value is None else f"{value:.4f}" for key in columns
                          for value in row.numbers.get(key, (None, None)))])
    return text.getvalue()


FORMS = {"text": as_text, "csv": as_csv, "latex": as_latex}
