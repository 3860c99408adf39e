"""The results of a run, or of several, as rows: the untrained model, then each stage, with gain and spread."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from report.published import DATASETS, figures, method_name
from report.run_files import MODEL_NAMES, NUMBERS, is_untrained

TRAINED = {"prepare": "train_prepare.py", "finetune": "train_clip.py"}
STAGES = ("baseline", *TRAINED)
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
        return STAGES.index(self.stage) if self.stage in STAGES else len(STAGES), self.best, self.differs

    @property
    def is_main(self):
        """Tell whether its epoch was not chosen on test data, and it was tested as the run was."""
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
    """Choose the result that a page begins with: the last stage's last epoch by the first protocol.

    Another checkpoint that lies in the folder comes first only where no stage was tested.
    """
    first = [result for result in results if result.protocol == results[0].protocol and result.is_main]
    return ([result for result in first if result.stage in TRAINED] or first or results[:1])[-1]


def baseline_of(results, result):
    """Find the untrained model's `Result` to compare another one with; None if it was not tested, or is that one."""
    wanted = "baseline", result.protocol, ""
    return next((other for other in results if (other.stage, other.protocol, other.differs) == wanted
                 and result.stage != "baseline"), None)


def result_tables(results, dataset="", method=""):
    """Lay results out: per protocol {"protocol", "rows": [{"name", "best", "over", "cells"}]}, gains over the baseline.

    Args: dataset, method: of published figures to add, DATASET.NAME and METHOD.NAME; those that state no mode stand in
        the first table.
    """
    tables = {}
    for result in results:
        title = "; ".join(filter(None, (result.protocol, result.scored)))
        table = tables.setdefault(result.protocol, {"protocol": title, "mode": result.mode, "rows": []})
        table["rows"].append(_row(result, result.name, baseline_of(results, result)))
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


def _row(result, name, reference):
    """Lay a result out as the row of a table. Args: reference: the `Result` whose numbers are the gain's, or None."""
    return {"name": name, "best": result.best, "over": f"± over {result.over}" if result.spread else "",
            "cells": cells(result, reference)}


def cells(result, reference):
    """Write a result's numbers in percent, and their gain over another: [{"name", "value", "spread", "gain", "sign"}].

    Args: reference: the other `Result`, or None for no gain. "sign" is -1, 0 or 1, that of the rounded gain.
    """
    gains = {key: round(100 * (result.numbers[key] - reference.numbers[key]), 1) + 0.0
             for key in NUMBERS} if reference else {}
    return [{"name": name, "value": f"{100 * result.numbers[key]:.1f}",
             "spread": f"± {100 * result.spread[key]:.1f}" if result.spread else "",
             "gain": f"{gains[key]:+.1f}".replace("-", "−") if gains else "", "sign": int(np.sign(gains.get(key, 0)))}
            for key, name in NUMBERS.items()]


def averaged(runs):
    """Average the results of runs that differ in their seed: [`Result`], one of each kind of model and protocol.

    One alone keeps the spread over its trials. Args: runs: a list of `Result` of each.
    """
    kinds = {}
    for result in (result for results in runs for result in results if not result.differs):
        kinds.setdefault((result.protocol, result.stage, result.best), []).append(result)
    means = []
    for first, *others in kinds.values():
        values = {key: [result.numbers[key] for result in (first, *others)] for key in NUMBERS}
        curves = [result.cmc for result in (first, *others)]
        means.append(first if not others else replace(
            first, numbers={key: float(np.mean(v)) for key, v in values.items()}, over=f"{len(curves)} runs",
            spread={key: float(np.std(v, ddof=1)) for key, v in values.items()},
            cmc=tuple(np.mean(curves, axis=0)) if all(curves) else ()))
    return means


def compared_tables(groups):
    """Lay the results of groups of runs out as `result_tables`; gains are over the first group's row of the same kind.

    Args: groups: name -> [`Result`], of `averaged`.
    """
    tables = {}
    for name, results in groups.items():
        for result in results:
            title = TRAINED.get(result.stage, result.name) + (f", {BEST}" if result.best else "")
            table = tables.setdefault((result.protocol, *result.order, result.stage), {
                "protocol": f"{title}: {result.protocol}", "reference": result, "rows": []})
            reference = table["reference"]
            table["rows"].append(_row(result, name, None if reference is result else reference))
    return [tables[key] for key in sorted(tables, key=lambda key: (list(tables)[0][0] != key[0], key))]
