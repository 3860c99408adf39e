"""The table of many runs: mean and standard deviation per method, stage and mode, beside released figures."""
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from configs.defaults import as_dict, load_config
from processor.evaluate import RANKS
from processor.run.folder import MAY_CHANGE, MODEL_FILES
from report.results import is_of_run
from report.run_files import read_bound, read_rows
from tools.lib.grid import BASELINE, RECORD, TESTED, read_record, results_file
from utils.errors import UserError
from utils.settings import differing_keys, flat

NUMBERS = (*(f"rank{r}" for r in RANKS), "mAP", "mINP")
SHOWN = ("rank1", "mAP", "mINP")        # in text and LaTeX; CSV holds all
STAGES = {BASELINE: "baseline CLIP", "prepare": "train_prepare", "finetune": "train_clip"}
STAGE_OF = {name: stage for stage, name in MODEL_FILES.items()}     # start of a checkpoint's name -> stage
SELECTIONS = {"last": "last epoch", "best": "best on test"}
DEFAULTS = flat(as_dict(load_config()))
NO_METHOD = ("SEED", "DATASET.TRIAL", *MAY_CHANGE)      # settings that make no other method
RELEASED = "README of the released code"
# (data set, stage, mode, what was chosen, numbers in percent, source). Nothing else is the authors' number.
PUBLISHED = (
    ("SYSU-MM01", "train_prepare", "all", "best", {"rank1": 50.02, "mAP": 45.52}, RELEASED),
    ("SYSU-MM01", "train_clip", "all", "best", {"rank1": 55.31, "mAP": 50.38}, RELEASED),
    ("RegDB", "train_clip", "trial 1, direction not stated", "best", {"rank1": 71.94, "mAP": 67.63}, RELEASED),
    ("SYSU-MM01", "train_clip", "not stated", None, {"rank1": 54.0}, "abstract of the paper"),
)


@dataclass(frozen=True)
class RunResults:
    """What the folder of one run holds."""

    folder: Path
    settings: dict      # "SECTION.KEY" -> value; the default of a key that is younger than the run; `read_bound`
    varied: tuple       # keys that its grid varied
    state: str          # of `tools.lib.grid.STATES`; "" where the run is of no grid
    error: str
    tested: tuple       # checkpoints whose tests are expected
    tests: dict         # (checkpoint's name, mode) -> record of test.py
    logged: dict        # "prepare" or "finetune" -> line of metrics.jsonl, of its last epoch


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    method: str
    stage: str
    mode: str
    protocol: str
    n: int              # runs
    cells: dict         # "last" | "best" -> {number: (mean, standard deviation or None), percent}; "logged" as it is
    source: str = ""    # of published figures; "" for our runs


def read_runs(folders, protocol):
    """Read the runs in folders, each a run's or one that holds runs: [`RunResults`], the same folder once.

    Args: protocol: "python", "original-1" or "original-10".
    Raises: UserError: a folder holds no run, or is one and holds more; runs are of different data sets or protocols;
        a file is damaged.
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
    record, path, tests = read_record(folder), folder / "config.yml", {}
    try:
        settings = flat(yaml.safe_load(path.read_text())) if path.is_file() else record["settings"]
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}); expected the settings that a "
                        "run wrote. Run its stage again")
    for checkpoint in (BASELINE, *TESTED):
        path = results_file(folder, checkpoint, protocol)
        if path.is_file():
            tests |= {(checkpoint, result["mode"]): result for result in _read_results(path)
                      if is_of_run(result)}
    return RunResults(folder, DEFAULTS | settings | read_bound(folder), tuple(record.get("varied", ())),
                      record.get("state", ""), record.get("error", ""), tuple(record.get("tested", TESTED)), tests,
                      _read_logged(folder))


def _read_logged(folder):
    """Read what the log says of the last epoch of each stage with a checkpoint. Raises UserError: it is damaged."""
    rows = {row["stage"]: row for row in read_rows(folder)}     # the last of each
    return {stage: rows[stage] for stage in MODEL_FILES if stage in rows}


def _read_results(path):
    """Read the records of a metrics.json, one per mode. Raises UserError: it is damaged."""
    try:
        record = json.loads(path.read_text())
        results = record.get("results", [record])
        return [{**result, **{name: float(result[name]) for name in NUMBERS}, "mode": str(result["mode"]),
                 "protocol": str(result["protocol"]), "dataset": str(result["dataset"])} for result in results]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); expected what test.py writes. "
                        "Delete it and test again")


def _refuse_mixtures(runs):
    """Refuse runs whose numbers do not compare. Raises UserError."""
    seen = {}
    for run in runs:
        name = str(run.settings.get("DATASET.NAME"))
        other = seen.setdefault("data set", (name, run.folder))
        if other[0] != name:
            raise UserError(f"{run.folder} is of the data set {name}, {other[1]} of {other[0]}; expected one data set. "
                            "Make a table for each")
        for (_, mode), record in run.tests.items():
            trial = record.get("dataset_trial", run.settings.get("DATASET.TRIAL"))
            if trial != run.settings.get("DATASET.TRIAL"):
                raise UserError(f"{run.folder} was trained on trial {run.settings.get('DATASET.TRIAL')} and holds "
                                f"results of trial {trial}; expected its own. Test it again")
            protocol = _protocol(record)
            other = seen.setdefault(mode, (protocol, run.folder))
            if other[0] != protocol:
                raise UserError(f"{run.folder} was tested with the protocol {protocol!r}, {other[1]} with {other[0]!r}"
                                "; their numbers do not compare. Test them alike, or make a table for each")


def _protocol(record):
    """Name the protocol of a record without the split of the data set."""
    return record["protocol"].replace(f" trial {record.get('dataset_trial')}", "")


def methods(runs):
    """Name the method of every run by the settings in which runs differ, beside seed and trial: [text]."""
    varied = {key for run in runs for key in run.varied} - {"SEED", "DATASET.TRIAL"}
    differ = [key for key in differing_keys([run.settings for run in runs])
              if key in varied or not key.startswith(NO_METHOD)]
    differ = sorted({*differ} | {"BOUND" for run in runs if "BOUND" in run.settings})
    return [", ".join(f"{key} {run.settings[key]}" for key in differ if key in run.settings) or "all runs"
            for run in runs]


def summarise(runs, logged=()):
    """Average over the runs of each method, stage and mode, and add the published figures of the data set: [`Row`].

    The standard deviation is that of the sample (n - 1); there is none for a single run.

    Args: logged: names of numbers in metrics.jsonl that are averaged too. Raises: UserError: no run has such a number.
    """
    groups = {}
    for method, run in zip(methods(runs), runs):
        for (checkpoint, mode), record in run.tests.items():
            name, _, selection = checkpoint.rpartition("_")
            stage, selection = (BASELINE, "last") if checkpoint == BASELINE else (STAGE_OF[name], selection)
            group = groups.setdefault((method, stage, mode), {"last": [], "best": [], "logged": {}})
            group[selection].append(record)
            group["logged"][run.folder] = run.logged.get(stage, {})
    rows, order = [], list(STAGES)
    for (method, stage, mode), group in sorted(groups.items(), key=lambda item: (item[0][0], item[0][2],
                                                                                 order.index(item[0][1]))):
        records, lines = group["last"] or group["best"], group["logged"].values()
        cells = {selection: {name: _spread([100 * record[name] for record in group[selection]]) for name in NUMBERS}
                 for selection in SELECTIONS if group[selection]}
        cells["logged"] = {name: _spread([line[name] for line in lines]) for name in logged
                           if all(name in line for line in lines)}
        rows.append(Row(method, STAGES[stage], mode, _protocol(records[0]), len(records), cells))
    for name in logged:
        if not any(name in row.cells["logged"] for row in rows):
            known = sorted({key for run in runs for line in run.logged.values() for key, value in line.items()
                            if isinstance(value, (int, float))})
            raise UserError(f"--logged names {name}, which is no number of all runs' metrics.jsonl; expected one of "
                            f"{', '.join(known)}")
    dataset = next(record["dataset"] for run in runs for record in run.tests.values())
    return rows + [Row(source, stage, mode, "", 1, {selection or "not stated": {
        name: (value, None) for name, value in numbers.items()}}, source)
        for name, stage, mode, selection, numbers, source in PUBLISHED if name == dataset]


def _spread(values):
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def missing(runs):
    """Name in sentences the runs that failed, and those without all of their tests."""
    lines = []
    for run in runs:
        absent = [name for name in run.tested if not any(checkpoint == name for checkpoint, _ in run.tests)]
        if run.state == "failed":
            lines.append(f"failed: {run.folder}: {run.error}")
        elif absent:
            lines.append(f"missing: {run.folder}{f' ({run.state})' if run.state else ''} has no test of "
                         f"{', '.join(absent)}")
    return lines or [f"no run of {len(runs)} is missing"]


def _logged(rows):
    """List the names of logged numbers that rows have."""
    return list(dict.fromkeys(name for row in rows for name in row.cells.get("logged", ())))


def _cells(row, between, nothing, logged):
    """Write the numbers of a row as text: last epoch, best on test, what was logged."""
    for selection, names in (*((selection, SHOWN) for selection in SELECTIONS), ("logged", logged)):
        for name in names:
            mean, deviation = row.cells.get(selection, {}).get(name, (None, None))
            yield nothing if mean is None else f"{mean:.2f}" + (f"{between}{deviation:.2f}" if deviation is not None
                                                                else "")


def as_text(rows):
    """Format the table for a console."""
    names = [name.replace("rank", "Rank-") for name in SHOWN]
    head = ("method", "stage", "mode", "n", *(f"{name}" for _ in SELECTIONS for name in names), *_logged(rows))
    lines = [(row.method, row.stage, row.mode, str(row.n), *_cells(row, " ± ", "–", _logged(rows)))
             for row in rows if _has_place(row)]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    group = sum(widths[4:7]) + 4
    above = " " * (sum(widths[:4]) + 8) + "".join(f"{title:^{group}}  " for title in SELECTIONS.values())
    text = ["  ".join(f"{cell:{'<' if i < 3 else '>'}{width}}" for i, (cell, width) in enumerate(zip(line, widths)))
            for line in (head, *lines)]
    return "\n".join([above.rstrip(), *text, "", "percent, mean ± standard deviation (n - 1) over n runs",
                      *_protocols(rows), *_notes(rows), ""])


def _protocols(rows):
    """List each mode with its protocol."""
    return list(dict.fromkeys(f"{row.mode}: {row.protocol}" for row in rows if row.protocol))


def _has_place(row):
    """Tell whether a row says what its numbers were chosen by; else it is a note."""
    return bool(row.cells.keys() & SELECTIONS.keys())


def _notes(rows):
    return [f"{row.source}: " + ", ".join(f"{name.replace('rank', 'Rank-')} {mean}" for name, (mean, _) in
                                          numbers.items()) + f" ({row.stage}; mode and selection not stated)"
            for row in rows if not _has_place(row) for numbers in row.cells.values()]


def as_latex(rows):
    """Format the table for LaTeX with booktabs."""
    def escape(text):
        return "".join({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"}.get(c, c) for c in text)

    logged, span = _logged(rows), len(SHOWN)
    columns = span * len(SELECTIONS) + len(logged)
    names = " & ".join([*(name.replace("rank", "Rank-") for _ in SELECTIONS for name in SHOWN), *map(escape, logged)])
    titles = " & ".join([*(rf"\multicolumn{{{span}}}{{c}}{{{title}}}" for title in SELECTIONS.values()),
                         *("" for _ in logged)])
    notes = [rf"\multicolumn{{{4 + columns}}}{{l}}{{\footnotesize {escape(line)}}} \\" for line in _protocols(rows)]
    body = [" & ".join((escape(row.method), escape(row.stage), escape(row.mode), str(row.n),
                        *_cells(row, r" $\pm$ ", "--", logged))) + r" \\" for row in rows if _has_place(row)]
    return "\n".join([*(f"% {note}" for note in _notes(rows)),
                      rf"\begin{{tabular}}{{lllr{'r' * columns}}}", r"\toprule", rf" & & & & {titles} \\",
                      rf"Method & Stage & Mode & $n$ & {names} \\", r"\midrule", *body,
                      r"\midrule", *notes, r"\bottomrule", r"\end{tabular}", ""])


def as_csv(rows):
    """Format all numbers as CSV: a mean and a standard deviation each."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = [*((selection, name) for selection in (*SELECTIONS, "not stated") for name in NUMBERS),
               *(("logged", name) for name in _logged(rows))]
    table.writerow(["method", "stage", "mode", "protocol", "n", "source",
                    *(f"{SELECTIONS.get(selection, selection)} {name}{part}" for selection, name in columns
                      for part in ("", " sd"))])
    for row in rows:
        numbers = [value for selection, name in columns
                   for value in row.cells.get(selection, {}).get(name, (None, None))]
        table.writerow([row.method, row.stage, row.mode, row.protocol, row.n, row.source,
                        *("" if value is None else f"{value:.4f}" for value in numbers)])
    return text.getvalue()


FORMS = {"text": as_text, "csv": as_csv, "latex": as_latex}
