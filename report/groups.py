"""Compares runs; those that differ in their seed alone are put together."""
import numpy as np

from report.curves import CURVES, points, unit_of
from report.figures import SERIES, Chart, Line
from utils.settings import differing_keys, flat

# Settings in which the runs of a group may differ.
LEFT_OUT = ("SEED", "DATASET.TRIAL", "OUTPUT_DIR", "DATASET.ROOT", "DATASET.CACHE_DIR")


def group_runs(runs):
    """Group runs (name -> `RunFiles`) by their settings: label -> [`RunFiles`], in the order of the runs.

    Where no settings are shared, so that there is nothing to average, each run has a group with its own name.
    """
    settings = [{key: value for key, value in flat(run.config).items() if key not in LEFT_OUT} for run in runs.values()]
    groups, differ = {}, differing_keys(settings)
    for found, (name, run) in zip(settings, runs.items()):
        label = ", ".join(f"{key} {_shown(found.get(key, '–'))}" for key in differ) or "all runs"
        label = label if run.config else name       # settings that are not known are not the same
        groups.setdefault(label, []).append(run)
    if len(groups) == len(runs):
        return {name: [run] for name, run in runs.items()}
    return {f"{label} (n = {len(group)})": group for label, group in groups.items()}


def _shown(value):
    return "(not set)" if value == "" else value


def comparison_charts(groups, stage, detail):
    """Make the `Chart`s of one stage with a line per group; the mean of several runs in a band of a standard deviation.

    Args: groups: line's name -> [rows of a run's metrics.jsonl]; detail: as `report.curves.stage_charts`.
    """
    charts = []
    for curve in CURVES:
        for label, key in curve.keys.items() if curve.detail == detail else ():
            lines = []
            for index, (name, group) in enumerate(groups.items()):
                by_epoch = {}
                for rows in group:
                    for x, y in zip(*points(rows, stage, key, curve)):
                        by_epoch.setdefault(x, []).append(y)
                x = sorted(by_epoch)
                mean = [float(np.mean(by_epoch[e])) for e in x]
                spread = [float(np.std(by_epoch[e], ddof=1)) if len(by_epoch[e]) > 1 else 0.0 for e in x]
                lines.append(Line(name, x, mean, SERIES[index % len(SERIES)], "-" if index < len(SERIES) else "--",
                                  spread if len(group) > 1 else ()))
            lines = [line for line in lines if line.x]
            if lines:
                title = f"{curve.title}, {label}" if len(curve.keys) > 1 else curve.title
                charts.append(Chart(f"{stage}_{key.replace('/', '_')}", title, tuple(lines), unit_of(curve, lines),
                                    top=curve.top, number=curve.number))
    return charts
