"""The results of a run, or of several, as rows: the untrained model, then each stage, with gain and spread."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from report.published import DATASETS, figures, method_name
from report.run_files import MODEL_NAMES, is_untrained

NUMBERS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "rank20": "Rank-20", "mAP": "mAP", "mINP": "mINP"}
TRAINED = {"prepare": "train_prepare.py", "finetune": "train_clip.py"}
BEST = "best Rank-1 on test data"


@dataclass(frozen=True)
class Result:
    """Numbers of one model by one protocol, as fractions of 1."""

    stage: str          # "baseline" for the untrained model, "prepare", "finetune", or what else was tested
    name: str
    protocol: str
    numbers: dict       # key of NUMBERS -> mean over the trials
    spread: dict        # key -> standard deviation, empty for a single value
    over: str = ""      # over what: "10 trials of one test", "3 runs"
    mode: str = ""
    cmc: tuple = ()
    best: bool = False  # chosen on test data
    differs: str = ""   # in what the test was done otherwise than in the run
    scored: str = ""    # how many of the queries have a right image to find and count

    @property
    def order(self):
        """Sort key of a table's rows: the baseline first, a stage's last epoch before its best."""
        stages = ("baseline", *TRAINED)
        return stages.index(self.stage) if self.stage in stages else len(stages), self.best, self.differs

    @property
    def is_main(self):
        """Tell whether it counts where one number stands for the model: of no epoch chosen on test data, tested as the
        run was.
        """
        return not (self.best or self.differs)


def find_results(run):
    """List the `Result`s of a `RunFiles`: per protocol the baseline, last and best epochs, what else was tested.

    What training and test.py have both tested stands once; so does an epoch that is both the last and the best.
    """
    found = {}
    for stage in TRAINED:
        rows = [row for row in run.epochs if row["stage"] == stage and "test" in row]
        for row in rows and (rows[-1], max(rows, key=lambda row: row["test"]["rank1"])):
            result = _result(stage, "", row["epoch"], row["test"], best=row is not rows[-1])
            found.setdefault((result.protocol, stage, row["epoch"], ""), result)
    for tested in sorted(run.tests, key=lambda tested: tested.record.get("selection") == BEST):
        record, epoch = tested.record, tested.record.get("epoch", 0)
        stage = "baseline" if is_untrained(record) else MODEL_NAMES.get(tested.of, tested.of)
        name = record["checkpoint"] if stage == "baseline" else f"test.py: {Path(record['checkpoint']).name}"
        result = _result(stage, name, epoch, record, record.get("selection") == BEST, tested.differs)
        found.setdefault((result.protocol, stage, epoch, tested.differs), result)
    protocols = list(dict.fromkeys(result.protocol for result in found.values()))
    return sorted(found.values(), key=lambda result: (protocols.index(result.protocol), *result.order))


def _result(stage, name, epoch, record, best, differs=""):
    """Make a `Result` of a record of metrics.json or metrics.jsonl. Args: name: of what no stage of the run made."""
    trials = record.get("per_trial", ())
    spread = {key: float(np.std([trial[key] for trial in trials], ddof=1)) for key in NUMBERS if len(trials) > 1}
    name = f"{TRAINED[stage]}, epoch {epoch}" if stage in TRAINED else name
    return Result(stage, ", ".join(filter(None, (name, best and BEST, differs))), record["protocol"],
                  {key: record[key] for key in NUMBERS}, spread, f"{len(trials)} trials of one test",
                  record.get("mode", ""), tuple(record.get("cmc", ())), best, differs, scored_of(record))


def scored_of(record):
    """Tell how many queries a record's numbers are of: "2,208 of 3,803 queries scored"."""
    return f"{record['scored']:,} of {record['queries']:,} queries scored" if "queries" in record else ""


def main_result(results):
    """Choose the result that a page begins with: the last stage's last epoch by the first protocol; None for none.

    Another checkpoint that lies in the folder comes first only where no stage was tested.
    """
    first = [result for result in results if result.protocol == results[0].protocol and result.is_main]
    stages = [result for result in first if result.stage in TRAINED]
    return (stages or first)[-1] if first else (results or [None])[0]


def baseline_of(results, protocol):
    """Find the `Result` of the untrained model by a protocol; None if it was not tested."""
    return next((result for result in results
                 if (result.stage, result.protocol, result.differs) == ("baseline", protocol, "")), None)


def with_epoch_0(run):
    """Return a run's rows with an epoch 0 before each stage that was tested: the untrained model, by its protocol."""
    results, first = find_results(run), {}
    for row in run.epochs:
        if "test" in row and row["stage"] not in first:
            first[row["stage"]] = baseline_of(results, row["test"]["protocol"])
    return [*({"stage": stage, "epoch": 0, "test": baseline.numbers} for stage, baseline in first.items() if baseline),
            *run.epochs]


def legend(result, results, method):
    """Name a result in a legend: by its METHOD.NAME, not by the script. Args: results: all of the run."""
    if result.stage not in TRAINED or not method:
        return result.name
    without = result.stage == "prepare" and any(other.stage == "finetune" for other in results)
    return f"{method_name(method)}{', without texts' if without else ''}"


def result_tables(results, dataset="", method=""):
    """Lay results out: per protocol {"protocol", "rows": [{"name", "best", "over", "cells"}]}, gains over the baseline.

    "aside" tells whether nothing in it was tested as the run was.

    Args: dataset, method: of published figures to add, DATASET.NAME and METHOD.NAME; those that state no mode stand in
        the first table.
    """
    tables = {}
    for result in results:
        baseline = baseline_of(results, result.protocol) if result.stage != "baseline" else None
        title = "; ".join(filter(None, (result.protocol, result.scored)))
        table = tables.setdefault(result.protocol, {"protocol": title, "mode": result.mode, "rows": [], "aside": True})
        table["aside"] &= not result.is_main
        table["rows"].append(row_of(result, result.name, baseline))
    theirs = [table for table in tables.values() if "original" not in table["protocol"]]    # galleries drawn as theirs
    for row in figures(DATASETS.get(dataset), method):
        known = row["mode"] in ("all", "indoor", "v2t", "t2v")
        for table in [table for table in theirs if not known or table["mode"] == row["mode"]][:1]:
            name = ", ".join(filter(None, (
                "published", method_name(method), row["backbone"], row["stage"].strip("–"), not known and row["mode"],
                row["selection"]))).replace("not stated, not stated", "mode and epoch not stated")
            table["rows"].append({"name": name, "best": True, "over": "", "cells": [
                {"name": title, "value": f"{float(row[key]):.1f}" if row.get(key) else "–", "spread": "", "gain": "",
                 "sign": 0} for key, title in NUMBERS.items()]})
    return list(tables.values())


def row_of(result, name, reference):
    """Lay a result out as the row of a table. Args: reference: the `Result` whose numbers are the gain's, or None."""
    return {"name": name, "best": result.best, "over": f"± over {result.over}" if result.spread else "",
            "cells": cells(result, reference)}


def cells(result, reference):
    """Write a result's numbers, and their gain over another: [{"name", "value", "spread", "gain", "sign"}].

    Args: reference: a `Result`, or None. Returns: "sign": of the gain as it is shown, -1, 0 or 1.
    """
    gains = {key: round(100 * (result.numbers[key] - reference.numbers[key]), 1) + 0.0
             for key in NUMBERS} if reference else {}
    return [{"name": name, "value": f"{100 * result.numbers[key]:.1f}",
             "spread": f"± {100 * result.spread[key]:.1f}" if result.spread else "",
             "gain": f"{gains[key]:+.1f}".replace("-", "−") if gains else "", "sign": int(np.sign(gains.get(key, 0)))}
            for key, name in NUMBERS.items()]


def compared_tables(groups):
    """Lay the results of several runs out as `result_tables`; gains are over the first group's row of the same kind.

    Args: groups: name -> list of runs' results, each a list of `Result`; runs of one group differ in their seed.
    """
    tables, first = {}, {}
    for name, runs in groups.items():
        kinds = {}
        for result in (result for results in runs for result in results if not result.differs):
            kinds.setdefault((result.protocol, result.stage, result.best), []).append(result)
        for (protocol, stage, best), found in kinds.items():
            mean = _mean(found)
            reference = first.setdefault((protocol, stage, best), mean)
            title = TRAINED.get(stage, mean.name if stage == "baseline" else stage) + (f", {BEST}" if best else "")
            row = row_of(mean, name, None if reference is mean else reference)
            table = tables.setdefault((protocol, *mean.order, stage), {"protocol": f"{title}: {protocol}", "rows": []})
            table["rows"].append(row)
    return [tables[key] for key in sorted(tables, key=lambda key: (list(tables)[0][0] != key[0], key))]


def _mean(results):
    """Average the results of runs that differ in their seed; one alone keeps the spread over its trials."""
    if len(results) == 1:
        return results[0]
    values = {key: [result.numbers[key] for result in results] for key in NUMBERS}
    return replace(results[0], numbers={key: float(np.mean(v)) for key, v in values.items()},
                   spread={key: float(np.std(v, ddof=1)) for key, v in values.items()}, over=f"{len(results)} runs")
