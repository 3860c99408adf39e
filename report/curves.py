"""The curves that the page draws from the numbers in metrics.jsonl."""
from dataclasses import dataclass

from report.figures import MODALITY_COLOURS, MODALITY_NAMES, MUTED, SERIES, Chart, Line

COLOURS = {name: MODALITY_COLOURS[modality] for modality, name in MODALITY_NAMES.items()}
DIAGNOSIS = "diagnosis by known identities"
STAGES = {"prepare": "train_prepare.py", "prompt": "train_clip.py, prompts", "finetune": "train_clip.py, fine-tuning"}


@dataclass(frozen=True)
class Curve:
    """Says which numbers of an epoch make a chart.

    `keys`: label -> key in a row ("test/rank1": of its dict "test"); `scale` multiplies the numbers; `top`: highest
    value of the axis; `positive`: leave out epochs whose number is 0 or less; `number`: format of its numbers;
    `detail`: whether the page folds it away, as what tells of the machine more than of the method.
    """

    name: str
    title: str
    unit: str
    keys: dict
    scale: float = 1.0
    top: float | None = None
    positive: bool = False
    number: str = "{:.4g}"
    detail: bool = False


def _both(key):
    """Name a number of both modalities: label -> key, in which the modality takes the place of {}."""
    return {name: key.format(modality) for modality, name in MODALITY_NAMES.items()}


CURVES = (
    Curve("test", "Test", "%", {"Rank-1": "test/rank1", "mAP": "test/mAP", "mINP": "test/mINP"}, 100),
    Curve("loss", "Loss of the memory", "mean of the epoch", _both("loss_{}")),
    Curve("loss_cross", "Losses across the modalities", "mean of the epoch",
          {"cross": "loss_cross", "hybrid": "loss_hybrid", "relation": "loss_relation"}),
    Curve("loss_i2t", "Image-to-text loss", "mean of the epoch", _both("loss_i2t_{}")),
    Curve("prompt_loss", "Loss of the prompts", "mean of the epoch", {"loss": "loss"}),
    Curve("clusters", "Clusters", "number", _both("clusters_{}")),
    Curve("outliers", "Outliers", "images without a cluster", _both("outliers_{}")),
    Curve("ari", "ARI", f"1 is perfect; {DIAGNOSIS}", _both("ari_{}"), top=1),
    Curve("nmi", "NMI", f"1 is perfect; {DIAGNOSIS}", _both("nmi_{}"), top=1),
    Curve("purity", "Purity", f"%; {DIAGNOSIS}", _both("purity_{}"), 100, 100),
    Curve("matching_accuracy", "Clusters matched rightly", f"% of links; {DIAGNOSIS}", {"links": "matching_accuracy"},
          100, 100),
    Curve("links", "Links of a linked cluster", "number",
          {"mean": "links_per_cluster", "most": "links_per_cluster_max"}, positive=True),
    Curve("matched", "Matched pairs", "per swap", {"pairs": "matched"}, positive=True),
    Curve("matched_similarity", "Similarity of pairs", "mean cosine before a swap", {"pairs": "matched_similarity"},
          positive=True),
    Curve("cluster_size_median", "Cluster size", "median, images", _both("cluster_size_{}_median"), detail=True),
    Curve("cluster_size_max", "Largest cluster", "images", _both("cluster_size_{}_max"), detail=True),
    Curve("lr", "Learning rate", "of the weights", {"rate": "lr"}, number="{:.1e}", detail=True),
    Curve("images_per_second", "Speed", "images/s", {"speed": "images_per_second"}, detail=True),
    Curve("seconds", "Time", "s per epoch", {"time": "seconds"}, detail=True),
    Curve("memory", "Peak memory", "GiB", {"process": "memory_gb", "GPU": "gpu_memory_gb"}, detail=True),
)


def points(rows, stage, key, curve):
    """Collect a number of all epochs of a stage: epochs, numbers. Args: key: such as "lr" or "test/rank1"."""
    x, y = [], []
    for row in rows:
        *outer, name = key.split("/")
        number = (row.get(outer[0], {}) if outer else row).get(name)
        if row["stage"] == stage and number is not None and (number > 0 or not curve.positive):
            x.append(row["epoch"])
            y.append(curve.scale * number)
    return x, y


def unit_of(curve, lines):
    """Return the unit of a curve's `Line`s, and what their epoch 0 is, if they have one."""
    return f"{curve.unit}; epoch 0: baseline CLIP" if any(0 in line.x for line in lines) else curve.unit


def stage_charts(rows, stage, detail):
    """Make the `Chart`s of one stage of a run, in the order of CURVES; those without numbers are left out.

    Args: detail: whether those that the page folds away, or the others.
    """
    charts = []
    swaps = [row["epoch"] for row in rows if row["stage"] == stage and row.get("matched")]
    for curve in CURVES:
        found = {label: points(rows, stage, key, curve) for label, key in curve.keys.items()}
        lines = [Line(label, x, y, COLOURS.get(label, SERIES[2 + index]))
                 for index, (label, (x, y)) in enumerate(found.items()) if x and x != [0]]
        if lines and curve.name == "clusters":
            lines += _person_line(rows, stage)
        if lines and curve.detail == detail:
            begins = swaps and swaps[0] > 1 and curve.name in ("test", "loss", "clusters", "ari", "matching_accuracy")
            charts.append(Chart(f"{stage}_{curve.name}", curve.title, tuple(lines), unit_of(curve, lines),
                                top=curve.top, mark=(swaps[0], "swapping begins") if begins else (),
                                number=curve.number))
    return charts


def _person_line(rows, stage):
    """Draw the number of persons, where it is known, as a dashed line beside the clusters."""
    known = [row for row in rows if row["stage"] == stage and row.get("clusters_per_person_rgb")]
    x = [row["epoch"] for row in known]
    y = [round(row["clusters_rgb"] / row["clusters_per_person_rgb"]) for row in known]
    return [Line("persons", x, y, MUTED, "--")] if x else []
