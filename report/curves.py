"""The curves that the page draws from the numbers in metrics.jsonl: of one run, and of groups of runs."""
from typing import NamedTuple

import numpy as np

from report.figures import MODALITY_NAMES, SERIES, Chart, Line
from report.published import published_lines
from utils.settings import flat

DIAGNOSIS = "diagnosis by known identities"
STAGES = {"prepare": "train_prepare.py", "prompt": "train_clip.py, prompts", "finetune": "train_clip.py, fine-tuning"}
PUBLISHED = {"test": ("rank1",), "clusters": ("clusters_rgb", "clusters_ir")}   # chart -> columns of published logs


class Curve(NamedTuple):
    """Says which numbers of an epoch make a chart.

    `keys`: label -> key in a row, None for all losses; `scale` multiplies the numbers; `top`: highest value of the
    axis; `flat`: leave out lines that are 1 in all epochs; `detail`: whether the page folds it away.
    """

    name: str
    title: str
    y_label: str
    keys: dict | None
    note: str = ""
    scale: float = 1.0
    top: float | None = None
    flat: bool = False
    detail: bool = False

    def keys_in(self, rows):
        """Return label -> key, of the losses those that rows have: loss_i2t_ir is "i2t infrared"."""
        if self.keys is not None:
            return self.keys
        return {" ".join(MODALITY_NAMES.get(word, word) for word in key.removeprefix("loss_").split("_")): key
                for row in rows for key in row if key == "loss" or key.startswith("loss_")}

    def line(self, key, label, index, *runs):
        """Draw a number of runs, their mean in a band of a standard deviation: a `Line`, None where it says nothing.

        Args: key: such as "lr" or "test.rank1"; index: of the line, for its colour; runs: flat rows of each.
        """
        by_epoch = {}
        for row in (row for rows in runs for row in rows if key in row):
            by_epoch.setdefault(row["epoch"], []).append(self.scale * row[key])
        x = sorted(by_epoch)
        y = [float(np.mean(by_epoch[epoch])) for epoch in x]
        if len(x) < 2 or self.flat and np.allclose(y, 1, atol=1e-3):
            return None
        spread = [float(np.std(by_epoch[epoch], ddof=1)) if len(by_epoch[epoch]) > 1 else 0.0 for epoch in x]
        return Line(label, x, y, SERIES[index % len(SERIES)], "-" if index < len(SERIES) else "--",
                    spread if len(runs) > 1 else ())

    def chart(self, name, title, lines, mark=None):
        """Make the `Chart` of some lines, with a note on what its lines mean."""
        notes = (self.note, mark and "dotted: modalities meet",
                 any(line.width < 1 for line in lines) and "thin: published logs")
        return Chart(name, title, lines, self.y_label, "; ".join(filter(None, notes)), top=self.top, mark=mark,
                     detail=self.detail)


def _both(key):
    """Name a number of both modalities: label -> key, in which the modality takes the place of {}."""
    return {name: key.format(modality) for modality, name in MODALITY_NAMES.items()}


CURVES = (
    Curve("test", "Test", "%", {"Rank-1": "test.rank1", "mAP": "test.mAP", "mINP": "test.mINP"}, scale=100),
    Curve("loss", "Losses", "mean of the epoch", None),
    Curve("clusters", "Clusters", "number", _both("clusters_{}")),
    Curve("outliers", "Outliers", "images without a cluster", _both("outliers_{}")),
    Curve("ari", "ARI of the clusters", "1 is perfect", _both("ari_{}"), DIAGNOSIS, top=1, flat=True),
    Curve("link_accuracy", "Clusters linked rightly", "% of links", {"links": "link_accuracy"}, DIAGNOSIS, 100, 100),
    Curve("link_similarity", "Similarity of linked clusters", "mean cosine", {"links": "link_similarity"},
          "at the epoch's start", flat=True),
    Curve("nmi", "NMI of the clusters", "1 is perfect", _both("nmi_{}"), DIAGNOSIS, top=1, flat=True, detail=True),
    Curve("purity", "Purity", "%", _both("purity_{}"), DIAGNOSIS, 100, 100, detail=True),
    Curve("links", "Links", "number", {"links": "links"}, detail=True),
    Curve("links_per_cluster", "Links of a linked cluster", "number",
          {"mean": "links_per_cluster", "most": "links_per_cluster_max"}, flat=True, detail=True),
    Curve("cluster_size_median", "Cluster size", "median, images", _both("cluster_size_{}_median"), detail=True),
    Curve("cluster_size_max", "Largest cluster", "images", _both("cluster_size_{}_max"), detail=True),
    Curve("lr", "Learning rate", "of the weights", {"rate": "lr"}, detail=True),
    Curve("images_per_second", "Speed", "images/s", {"speed": "images_per_second"}, detail=True),
    Curve("seconds", "Time", "s per epoch", {"time": "seconds"}, detail=True),
    Curve("memory", "Peak memory", "GiB", {"process": "memory_gb", "GPU": "gpu_memory_gb"}, detail=True),
)


def stage_charts(rows, stage, cross_epoch=0, dataset=""):
    """Make the `Chart`s of one stage of a run, in the order of CURVES; those without a curve are left out.

    Args: rows: of metrics.jsonl; cross_epoch: from which the modalities meet; dataset: of `RunFiles.published_as`,
        whose published logs are drawn as thin lines.
    """
    charts, rows = [], _of_stage(rows, stage)
    meet = cross_epoch if rows and "links" in rows[-1] and 1 < cross_epoch <= rows[-1]["epoch"] else None
    for curve in CURVES:
        lines = [curve.line(key, label, index, rows) for index, (label, key) in enumerate(curve.keys_in(rows).items())]
        if lines := list(filter(None, lines)):
            lines += published_lines(dataset, PUBLISHED.get(curve.name, ()), rows[-1]["epoch"])
            charts.append(curve.chart(f"{stage}_{curve.name}", curve.title + ", prompts" * (stage == "prompt"), lines,
                                      None if curve.detail else meet))
    return charts


def comparison_charts(groups, stage):
    """Make the `Chart`s of one stage, one for each number, with a line per group: the mean of its runs.

    Args: groups: line's name -> [rows of a run's metrics.jsonl].
    """
    groups = {name: [_of_stage(rows, stage) for rows in group] for name, group in groups.items()}
    charts, everything = [], [row for group in groups.values() for rows in group for row in rows]
    for curve in CURVES:
        keys = curve.keys_in(everything)
        for label, key in keys.items():
            lines = [curve.line(key, name, index, *runs) for index, (name, runs) in enumerate(groups.items())]
            if lines := list(filter(None, lines)):
                charts.append(curve.chart(f"{stage}_{key}", f"{curve.title}, {label}" if len(keys) > 1 else curve.title,
                                          lines))
    return charts


def _of_stage(rows, stage):
    return [flat(row) for row in rows if row["stage"] == stage]


def cmc_charts(lines):
    """Make a CMC chart of each title and protocol. Args: lines: (title, line's label, `Result`)."""
    charts = {}
    for title, label, result in lines:
        if result.cmc:
            found = charts.setdefault((title, result.protocol), [])
            found.append(Line(label, list(range(1, len(result.cmc) + 1)), [100 * share for share in result.cmc],
                              SERIES[len(found) % len(SERIES)], "--" if result.stage == "baseline" else "-"))
    return [Chart(f"cmc_{number}", title, found, "% found within a rank", protocol, "rank", top=100)
            for number, ((title, protocol), found) in enumerate(charts.items(), 1)]


def distance_chart(found):
    """Make the `Chart` of the distances within and between persons. Args: found: of `report.content`."""
    edges, counts = np.array(found["edges"]), found["across"]
    lines = [Line(f"{kind} person", ((edges[1:] + edges[:-1]) / 2).tolist(),
                  (np.array(counts[kind]) / max(sum(counts[kind]), 1) / np.diff(edges)).tolist(), colour)
             for kind, colour in (("same", SERIES[2]), ("different", SERIES[4]))]
    return Chart("distances", "Distances, visible to infrared", lines, "density of pairs", x_label="cosine distance")
