"""The curves that the page draws from the numbers in metrics.jsonl: of one run, and of groups of runs."""
from dataclasses import dataclass

import numpy as np

from report.figures import MODALITY_COLOURS, MODALITY_NAMES, MUTED, SERIES, Chart, Line
from report.published import published_lines

COLOURS = {name: MODALITY_COLOURS[modality] for modality, name in MODALITY_NAMES.items()}
DIAGNOSIS = "diagnosis by known identities"
STAGES = {"prepare": "train_prepare.py", "prompt": "train_clip.py, prompts", "finetune": "train_clip.py, fine-tuning"}
CMC_TICKS = (1, 5, 10, 20)
MARKED = ("test", "loss", "clusters", "ari", "link_accuracy")   # charts in which a line marks METHOD.CROSS_EPOCH
PUBLISHED = {"test": ("rank1",), "clusters": ("clusters_rgb", "clusters_ir")}   # chart -> columns of published logs


@dataclass(frozen=True)
class Curve:
    """Says which numbers of an epoch make a chart.

    `keys`: label -> key in a row ("test/rank1": of its dict "test"), None for all losses; `scale` multiplies the
    numbers; `top`: highest value of the axis; `positive`: leave out epochs whose number is 0 or less; `flat`: leave out
    lines that are 1 in all epochs; `number`: format of its numbers; `detail`: whether the page folds it away.
    """

    name: str
    title: str
    y_label: str
    keys: dict | None
    note: str = ""
    scale: float = 1.0
    top: float | None = None
    positive: bool = False
    flat: bool = False
    number: str = "{:.4g}"
    detail: bool = False

    def keys_in(self, rows):
        """Return label -> key, of the losses those that rows have, whatever their names are."""
        if self.keys is not None:
            return self.keys
        return {_loss_label(key): key for row in rows for key in row if key == "loss" or key.startswith("loss_")}

    def points(self, rows, stage, key):
        """Collect a number of all epochs of a stage: epochs, numbers; both empty where they make no curve.

        Args: key: such as "lr" or "test/rank1".
        """
        x, y = [], []
        for row in rows:
            *outer, name = key.split("/")
            number = (row.get(outer[0], {}) if outer else row).get(name)
            if row["stage"] == stage and number is not None and (number > 0 or not self.positive):
                x.append(row["epoch"])
                y.append(self.scale * number)
        says_nothing = len(x) < 2 or self.flat and np.allclose(y, 1, atol=1e-3)
        return ([], []) if says_nothing else (x, y)

    def chart(self, name, title, lines, mark=()):
        """Make the `Chart` of some lines, with a note on epoch 0 and on thin lines, if there are any."""
        notes = (self.note, any(0 in line.x for line in lines) and "epoch 0: before training",
                 any(line.width < 1 for line in lines) and "thin: published logs")
        return Chart(name, title, tuple(lines), self.y_label, "; ".join(filter(None, notes)), top=self.top, mark=mark,
                     number=self.number)


def _loss_label(key):
    """Name a loss: loss_rgb is "visible", loss_i2t_ir is "i2t infrared", any other by its own name."""
    return " ".join(MODALITY_NAMES.get(word, word) for word in key.removeprefix("loss_").split("_"))


def _both(key):
    """Name a number of both modalities: label -> key, in which the modality takes the place of {}."""
    return {name: key.format(modality) for modality, name in MODALITY_NAMES.items()}


CURVES = (
    Curve("test", "Test", "%", {"Rank-1": "test/rank1", "mAP": "test/mAP", "mINP": "test/mINP"}, scale=100),
    Curve("loss", "Losses", "mean of the epoch", None),
    Curve("clusters", "Clusters", "number", _both("clusters_{}")),
    Curve("outliers", "Outliers", "images without a cluster", _both("outliers_{}")),
    Curve("ari", "ARI of the clusters", "1 is perfect", _both("ari_{}"), DIAGNOSIS, top=1, flat=True),
    Curve("link_accuracy", "Clusters linked rightly", "% of links", {"links": "link_accuracy"}, DIAGNOSIS, 100, 100),
    Curve("link_similarity", "Similarity of linked clusters", "mean cosine", {"links": "link_similarity"},
          "at the epoch's start", positive=True, flat=True),
    Curve("nmi", "NMI of the clusters", "1 is perfect", _both("nmi_{}"), DIAGNOSIS, top=1, flat=True, detail=True),
    Curve("purity", "Purity", "%", _both("purity_{}"), DIAGNOSIS, 100, 100, detail=True),
    Curve("links", "Links", "number", {"links": "links"}, positive=True, detail=True),
    Curve("links_per_cluster", "Links of a linked cluster", "number",
          {"mean": "links_per_cluster", "most": "links_per_cluster_max"}, positive=True, flat=True, detail=True),
    Curve("cluster_size_median", "Cluster size", "median, images", _both("cluster_size_{}_median"), detail=True),
    Curve("cluster_size_max", "Largest cluster", "images", _both("cluster_size_{}_max"), detail=True),
    Curve("lr", "Learning rate", "of the weights", {"rate": "lr"}, number="{:.1e}", detail=True),
    Curve("images_per_second", "Speed", "images/s", {"speed": "images_per_second"}, detail=True),
    Curve("seconds", "Time", "s per epoch", {"time": "seconds"}, detail=True),
    Curve("memory", "Peak memory", "GiB", {"process": "memory_gb", "GPU": "gpu_memory_gb"}, detail=True),
)


def stage_charts(rows, stage, detail, cross_epoch=None, dataset=""):
    """Make the `Chart`s of one stage of a run, in the order of CURVES; those without a curve are left out.

    Args: detail: whether those that the page folds away, or the others; cross_epoch: from which the modalities meet;
        dataset: of `RunFiles.published_as`, whose published logs are drawn as thin lines.
    """
    charts, rows = [], [row for row in rows if row["stage"] == stage]
    of_prompts = ", prompts" if stage == "prompt" else ""
    meet = cross_epoch and cross_epoch > 1 and any(row.get("links") and row["epoch"] >= cross_epoch for row in rows)
    for curve in CURVES:
        found = {label: curve.points(rows, stage, key) for label, key in curve.keys_in(rows).items()}
        lines = [Line(label, x, y, COLOURS.get(label, SERIES[2 + index % 6]), "-" if index < 6 else "--")
                 for index, (label, (x, y)) in enumerate(found.items()) if x]
        if lines and curve.name == "clusters":
            lines += _person_line(rows)
        if lines and curve.name in PUBLISHED:
            lines += published_lines(dataset, PUBLISHED[curve.name], rows[-1]["epoch"])
        if lines and curve.detail == detail:
            charts.append(curve.chart(f"{stage}_{curve.name}", curve.title + of_prompts, lines, mark=(
                cross_epoch, "modalities meet") if meet and curve.name in MARKED else ()))
    return charts


def _person_line(rows):
    """Draw the number of persons, where it is known, as a dashed line beside the clusters."""
    known = [row for row in rows if row.get("clusters_per_person_rgb")]
    y = [round(row["clusters_rgb"] / row["clusters_per_person_rgb"]) for row in known]
    return [Line("persons", [row["epoch"] for row in known], y, MUTED, "--")] if known else []


def comparison_charts(groups, stage, detail):
    """Make the `Chart`s of one stage with a line per group; the mean of several runs in a band of a standard deviation.

    Args: groups: line's name -> [rows of a run's metrics.jsonl]; detail: as `stage_charts`.
    """
    charts, everything = [], [row for group in groups.values() for rows in group for row in rows
                              if row["stage"] == stage]
    for curve in CURVES:
        keys = curve.keys_in(everything)
        for label, key in keys.items() if curve.detail == detail else ():
            lines = [_group_line(name, index, [curve.points(rows, stage, key) for rows in group])
                     for index, (name, group) in enumerate(groups.items())]
            lines = [line for line in lines if line.x]
            if lines:
                charts.append(curve.chart(f"{stage}_{key.replace('/', '_')}",
                                          f"{curve.title}, {label}" if len(keys) > 1 else curve.title, lines))
    return charts


def _group_line(name, index, runs):
    """Average the runs of a group: a `Line`. Args: index: of the group, for its colour; runs: [(epochs, numbers)]."""
    by_epoch = {}
    for x, y in runs:
        for epoch, number in zip(x, y):
            by_epoch.setdefault(epoch, []).append(number)
    epochs = sorted(by_epoch)
    spread = [float(np.std(by_epoch[e], ddof=1)) if len(by_epoch[e]) > 1 else 0.0 for e in epochs]
    return Line(name, epochs, [float(np.mean(by_epoch[e])) for e in epochs], SERIES[index % len(SERIES)],
                "-" if index < len(SERIES) else "--", spread if len(runs) > 1 else ())


def cmc_charts(tests):
    """Make CMC charts. Args: tests: (protocol, title, line's label, colour, `report.results.Result`)."""
    lines = {}
    for protocol, title, label, colour, result in tests:
        if result.cmc:
            lines.setdefault((title, protocol), []).append(Line(
                label, list(range(1, len(result.cmc) + 1)), [100 * share for share in result.cmc], colour,
                "--" if result.stage == "baseline" else "-"))
    return [Chart(f"cmc_{number}", title, tuple(found), "% found within a rank", protocol, "rank", top=100,
                  ticks=CMC_TICKS, number="{:.1f}")
            for number, ((title, protocol), found) in enumerate(lines.items(), 1)]
