"""What others published, from docs/reference/published: figures for the table of results, logs for the curves."""
import csv
from functools import cache
from itertools import groupby
from pathlib import Path

from report.figures import SERIES, Line

FOLDER = Path(__file__).resolve().parents[1] / "docs/reference/published"
DATASETS = {"sysu": "SYSU-MM01", "regdb": "RegDB"}      # DATASET.NAME -> name in the files
METHODS = {"cclnet": "CCLNet", "pgm": "PGM", "rpnr": "RPNR", "nulc": "N-ULC", "sdcl": "SDCL"}
MODALITIES = {"clusters_rgb": "visible", "clusters_ir": "infrared"}
FAR = 1.25      # times the largest, or a 1.25th of the smallest, is far outside


def method_name(name):
    """Return a method's name as papers write it, by its METHOD.NAME; an unknown one stays."""
    return METHODS.get(name, name)


@cache
def _rows(file):
    """Read a file of the folder, [] where a copy of this project came without its docs: a list of dicts."""
    path = FOLDER / file
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []


def figures(dataset, method):
    """List the rows of figures.csv: dicts, numbers in percent as text.

    Args: dataset: its name in the file, such as SYSU-MM01; method: METHOD.NAME.
    """
    return [row for row in _rows("figures.csv") if (row["dataset"], row["method"]) == (dataset, method)]


def logs(dataset):
    """Collect the published logs of DATASET.NAME: {"PGM": its rows in logs.csv, one an epoch}."""
    found = {}
    for log, rows in groupby(_rows("logs.csv"), key=lambda row: row["log"]):
        method, of, *more = log.split("_", 2)
        if of == dataset:
            found[", ".join([method_name(method), *(words.replace("_", " ") for words in more)])] = list(rows)
    return found


def published_lines(dataset, keys, last):
    """Draw numbers of the published logs of DATASET.NAME as thin `Line`s.

    Args: keys: columns of logs.csv; last: epoch to end with.
    """
    lines = []
    for index, (name, rows) in enumerate(logs(dataset).items()):
        for key in keys:
            points = [(int(row["epoch"]), float(row[key])) for row in rows if row[key] and int(row["epoch"]) <= last]
            if len(points) > 1:
                infrared = MODALITIES.get(key) == "infrared"
                lines.append(Line(name + ", infrared" * infrared, *zip(*points), SERIES[3 + index],
                                  ":" if infrared else "-", width=0.9))
    return lines


def far_outside(dataset, row):
    """Say in a sentence each how the clusters of a first epoch lie far outside the published ones.

    Args: dataset: DATASET.NAME; row: of metrics.jsonl.
    """
    sentences = []
    for key, modality in MODALITIES.items():
        first = [int(rows[0][key]) for rows in logs(dataset).values() if rows[0]["epoch"] == "1"]
        if first and key in row and not min(first) / FAR <= row[key] <= max(first) * FAR:
            sentences.append(f"{row[key]:,} {modality} clusters in the first epoch; published runs of other methods "
                             f"have {min(first):,} to {max(first):,}.")
    return sentences
