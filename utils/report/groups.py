"""Puts runs together that differ in their seed alone: means, bands of a standard deviation, differences."""
import numpy as np

from utils.report.curves import CURVES, points
from utils.report.figures import SERIES, Chart, Line
from utils.report.run_files import flat

# Settings in which the runs of a group may differ.
LEFT_OUT = ("SEED", "DATASET.TRIAL", "OUTPUT_DIR", "DATASET.ROOT", "DATASET.CACHE_DIR")


def group_runs(runs):
    """Group runs (name -> `RunFiles`) by their settings: label -> [`RunFiles`], in the order of the runs.

    Returns {} where no group has several runs, so that there is nothing to average.
    """
    settings = [{key: value for key, value in flat(run.config).items() if key not in LEFT_OUT} for run in runs.values()]
    keys = sorted({key for found in settings for key in found})
    differ = [key for key in keys if len({str(found.get(key)) for found in settings}) > 1]
    groups = {}
    for found, (name, run) in zip(settings, runs.items()):
        label = ", ".join(f"{key} {found.get(key, '–')}" for key in differ) or "all runs"
        label = label if run.config else name       # settings that are not known are not the same
        groups.setdefault(label, []).append(run)
    return groups if any(len(group) > 1 for group in groups.values()) else {}


def mean_rows(groups, numbers):
    """Average the results of each group: rows of label, what, protocol, n, then a cell for each of `numbers`.

    A cell holds mean ± standard deviation (n - 1) in percent and, from the second group on, the difference of the mean
    from the first group's of the same result and protocol.
    """
    rows, first = [], {}
    for label, group in groups.items():
        found = {}
        for run in group:
            for what, protocol, result in run.results():
                found.setdefault((what, protocol), []).append([100 * result[key] for key in numbers])
        for (what, protocol), values in found.items():
            mean = np.mean(values, axis=0)
            before = first.get((what, protocol)) if groups and label != next(iter(groups)) else None
            first.setdefault((what, protocol), mean)
            spread = np.std(values, axis=0, ddof=1) if len(values) > 1 else [None] * len(mean)
            rows.append((label, what, protocol, len(values), *(
                f"{m:.2f}" + (f" ± {s:.2f}" if s is not None else "") + (
                    f" ({m - before[i]:+.2f})" if before is not None else "")
                for i, (m, s) in enumerate(zip(mean, spread)))))
    return rows


def group_charts(groups, stage):
    """Make the `Chart`s of one stage with a line per group: its mean, in a band of a standard deviation."""
    charts = []
    for curve in CURVES:
        for label, key in curve.keys.items():
            lines = []
            for index, (name, group) in enumerate(groups.items()):
                by_epoch = {}
                for run in group:
                    for x, y in zip(*points(run.epochs, stage, key, curve)):
                        by_epoch.setdefault(x, []).append(y)
                if by_epoch:
                    x = sorted(by_epoch)
                    mean = [float(np.mean(by_epoch[e])) for e in x]
                    spread = [float(np.std(by_epoch[e], ddof=1)) if len(by_epoch[e]) > 1 else 0.0 for e in x]
                    lines.append(Line(f"{name} (n = {len(group)})", x, mean, SERIES[index % len(SERIES)],
                                      "-" if index < len(SERIES) else "--", spread))
            if lines:
                title = f"{curve.title}, {label}" if len(curve.keys) > 1 else curve.title
                charts.append(Chart(f"{stage}_{key.replace('/', '_')}", title, tuple(lines), curve.unit, top=curve.top))
    return charts
