"""The results of a run, or of several, as rows: baseline CLIP, then each stage, with gain and spread."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

NUMBERS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "rank20": "Rank-20", "mAP": "mAP", "mINP": "mINP"}
TRAINED = {"prepare": "train_prepare.py", "finetune": "train_clip.py"}
STAGE_OF_FILE = {"prepare_last": "prepare", "prepare_best": "prepare", "model_last": "finetune",
                 "model_best": "finetune"}
BASELINE = "baseline CLIP"
BEST = "best Rank-1 on test data"
RELEASED = "as released"        # selection of a checkpoint in the released format


@dataclass(frozen=True)
class Result:
    """Numbers of one model by one protocol, as fractions of 1."""

    stage: str          # "baseline", "prepare", "finetune", or what else was tested
    name: str
    protocol: str
    numbers: dict       # key of NUMBERS -> mean over the trials
    spread: dict        # key -> standard deviation over the trials (of several runs: over the runs), empty for one
    cmc: tuple = ()
    best: bool = False  # chosen on test data

    @property
    def order(self):
        """Sort key of a table's rows: the baseline first, a stage's last epoch before its best."""
        stages = ("baseline", *TRAINED)
        return stages.index(self.stage) if self.stage in stages else len(stages), self.best


def find_results(run):
    """List the `Result`s of a `RunFiles`: per protocol the baseline, last and best epochs, what else was tested.

    What training and test.py have both tested stands once.
    """
    found = {}
    for stage, title in TRAINED.items():
        rows = [row for row in run.epochs if row["stage"] == stage and "test" in row]
        for row in rows and (rows[-1], max(rows, key=lambda row: row["test"]["rank1"])):
            best = row is not rows[-1]
            name = f"{title}, epoch {row['epoch']}" + (f", {BEST}" if best else "")
            found.setdefault((row["test"]["protocol"], stage, row["epoch"]), _result(stage, name, row["test"], best))
    for where, metrics in run.tests.items():
        for record in metrics.get("results", [metrics]):
            checkpoint = str(record.get("checkpoint", ""))
            trained = STAGE_OF_FILE.get(Path(checkpoint).stem) if where == "." or is_of_run(record) else None
            stage = "baseline" if checkpoint == BASELINE else trained or where
            epoch, best = record.get("epoch", 0), record.get("selection") == BEST
            name = BASELINE if stage == "baseline" else f"{TRAINED[stage]}, epoch {epoch}" if stage in TRAINED else (
                f"{where if where != '.' else 'test.py'}: {Path(checkpoint).name}")
            name += f", {BEST}" if best else ""
            found.setdefault((record["protocol"], stage, epoch), _result(stage, name, record, best))
    protocols = list(dict.fromkeys(result.protocol for result in found.values()))
    return sorted(found.values(), key=lambda result: (protocols.index(result.protocol), *result.order))


def is_of_run(record):
    """Tell whether a record of metrics.json is of a checkpoint of the run in whose folder it lies."""
    return record.get("of_this_run", record.get("selection") != RELEASED)      # earlier versions do not say it


def _result(stage, name, record, best):
    """Make a `Result` of a record of metrics.json or metrics.jsonl."""
    trials = record.get("per_trial", ())
    spread = {key: float(np.std([trial[key] for trial in trials], ddof=1)) for key in NUMBERS if len(trials) > 1}
    return Result(stage, name, record["protocol"], {key: record[key] for key in NUMBERS}, spread,
                  tuple(record.get("cmc", ())), best)


def main_result(results):
    """Choose the result that a page begins with: the last stage's last epoch by the first protocol; None for none."""
    first = [result for result in results if result.protocol == results[0].protocol and not result.best]
    return first[-1] if first else (results or [None])[0]


def baseline_of(results, protocol):
    """Find the numbers of baseline CLIP by a protocol; None if it was not tested."""
    return next((result.numbers for result in results if (result.stage, result.protocol) == ("baseline", protocol)),
                None)


def result_tables(results):
    """Lay results out: per protocol {"protocol", "rows": [{"name", "best", "cells"}]}, gains over baseline CLIP."""
    tables = {}
    for result in results:
        reference = baseline_of(results, result.protocol) if result.stage != "baseline" else None
        rows = tables.setdefault(result.protocol, {"protocol": result.protocol, "rows": []})["rows"]
        rows.append({"name": result.name, "best": result.best, "cells": cells(result, reference)})
    return list(tables.values())


def cells(result, reference):
    """Write a result's numbers, and their gain over others: [{"name", "value", "spread", "gain", "worse"}].

    Args: reference: key -> fraction, or None.
    """
    return [{"name": name, "value": f"{100 * result.numbers[key]:.1f}",
             "spread": f"± {100 * result.spread[key]:.1f}" if result.spread else "",
             "gain": difference(result.numbers[key], reference[key]) if reference else "",
             "worse": bool(reference) and result.numbers[key] < reference[key]}
            for key, name in NUMBERS.items()]


def difference(number, reference):
    """Write a difference of fractions in points, with its sign."""
    return f"{100 * (number - reference):+.1f}".replace("-", "−")


def compared_tables(groups):
    """Lay the results of several runs out as `result_tables`; gains are over the first group's row of the same kind.

    Args: groups: name -> list of runs' results, each a list of `Result`; runs of one group differ in their seed.
    """
    tables, first = {}, {}
    for name, runs in groups.items():
        kinds = {}
        for result in (result for results in runs for result in results):
            kinds.setdefault((result.protocol, result.stage, result.best), []).append(result)
        for (protocol, stage, best), found in kinds.items():
            mean = _mean(found)
            reference = first.setdefault((protocol, stage, best), (name, mean.numbers))
            title = TRAINED.get(stage, BASELINE if stage == "baseline" else stage) + (f", {BEST}" if best else "")
            row = {"name": name, "best": best, "cells": cells(mean, None if reference[0] == name else reference[1])}
            table = tables.setdefault((protocol, *mean.order, stage), {"protocol": f"{title}: {protocol}", "rows": []})
            table["rows"].append(row)
    return [tables[key] for key in sorted(tables, key=lambda key: (list(tables)[0][0] != key[0], key))]


def _mean(results):
    """Average the results of runs that differ in their seed; one alone keeps the spread over its trials."""
    if len(results) == 1:
        return results[0]
    values = {key: [result.numbers[key] for result in results] for key in NUMBERS}
    return replace(results[0], numbers={key: float(np.mean(v)) for key, v in values.items()},
                   spread={key: float(np.std(v, ddof=1)) for key, v in values.items()})
