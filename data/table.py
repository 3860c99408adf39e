"""Own images, listed in a table: DATASET.NAME csv.

    ROOT/images.csv     path,split,modality,camera,person

path: of an image, from ROOT; split: train, query, gallery, or test (query and gallery); modality: rgb or ir (also
visible, vis, infrared, thermal, nir); camera: a number; person: any text, may be empty where the split is train.
"""
import csv
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from data.records import CROSS_MODES, DataSet, ImageSet, Retrieval, existing_root, require_disjoint, require_file
from utils.errors import UserError, explained
from utils.modality import Modality

FILE = "images.csv"
COLUMNS = ("path", "split", "modality", "camera", "person")
LAYOUT = f"{FILE} with the columns {', '.join(COLUMNS)}"
SPLITS = ("train", "query", "gallery", "test")
MODALITIES = {"rgb": Modality.RGB, "visible": Modality.RGB, "vis": Modality.RGB, "ir": Modality.IR,
              "infrared": Modality.IR, "thermal": Modality.IR, "nir": Modality.IR}
UNKNOWN = -1        # person of a training image whose column is empty


@dataclass(frozen=True)
class TableDataSet(DataSet):
    """Searches all queries of one modality among the whole gallery of the other; no image is hidden from a query."""

    # Modality -> {"query" | "gallery": (N,) positions in the test images}
    roles: dict = field(default_factory=dict)

    @property
    def modes(self):
        """The directions that have queries and a gallery."""
        return tuple(mode for mode, m in CROSS_MODES.items()
                     if len(self.roles[m]["query"]) and len(self.roles[m.other]["gallery"]))

    def test_lines(self, modality):
        """Say of each test image whether it is a query and in the gallery too."""
        lines = super().test_lines(modality)
        is_query, is_shown = (np.isin(np.arange(len(lines)), rows) for rows in self.roles[modality].values())
        return [f"{line} {query} {shown}" for line, query, shown in zip(lines, is_query, is_shown)]

    def _retrieval(self, mode, trials, protocol):
        """Select all queries and the whole gallery."""
        m = CROSS_MODES[mode]
        return Retrieval(f"{self.name} {m.value} to {m.other.value}, whole gallery", mode, "regdb", m,
                         self.roles[m]["query"], (self.roles[m.other]["gallery"],), (0,))


def load(root, trial=1, check_counts=True):
    """Read ROOT/images.csv.

    Args: trial, check_counts: without effect: there is one split, and no counts are published.
    Returns: `TableDataSet`; images in the order of the rows.
    Raises: UserError: the file is missing or no such table, a row is wrong, an image is missing or named twice, a
        person is in training and test, or there is nothing to train on or to test.
    """
    root = existing_root(root, LAYOUT)
    rows = read_rows(root / FILE)
    learned, tested = ([row for row in rows if (row["split"] == "train") == is_train] for is_train in (True, False))
    require_disjoint(*({row["person"] for row in of} - {""} for of in (learned, tested)), f"rows of {root / FILE}",
                     "Correct the column split or person")
    persons = {person: number for number, person in enumerate(sorted({row["person"] for row in rows} - {""}))}
    if any(not row["person"] for row in learned):       # partly known is unknown
        learned = [{**row, "person": ""} for row in learned]
    train, test, roles = {}, {}, {}
    for m in Modality:
        train[m], test[m] = (ImageSet.from_rows(m, [(row["path"], persons.get(row["person"], UNKNOWN), row["camera"])
                                                    for row in of if row["modality"] is m]) for of in (learned, tested))
        splits = [row["split"] for row in tested if row["modality"] is m]
        roles[m] = {role: np.flatnonzero(np.isin(splits, (role, "test"))) for role in ("query", "gallery")}
        if not len(train[m]):
            raise UserError(f"{root / FILE} lists no {m.value} image of the split train; expected images of both "
                            "modalities to train on. Add rows")
    data = TableDataSet(root.resolve().name, root, train, test, roles=roles)
    if not data.modes:
        raise UserError(f"{root / FILE} lists nothing to test: expected queries (split query or test) of one modality "
                        "and a gallery (split gallery or test) of the other. Add rows")
    return data


def read_rows(path):
    """Read and check the rows of images.csv: a dict by column for each, in their order.

    Raises: UserError: names the row, counted from 1 below the head.
    """
    require_file(path, f"expected {LAYOUT}")
    with (explained(f"{path} cannot be read", f"expected {LAYOUT}"),
          open(path, newline="", encoding="utf-8-sig") as file):
        table = csv.DictReader(file, strict=True)
        head, found = table.fieldnames or [], list(table)
    if sorted(head) != sorted(COLUMNS):
        raise UserError(f"{path} has the columns {', '.join(head) or 'none'}; expected {', '.join(COLUMNS)}. Correct "
                        "its first line")
    if not found:
        raise UserError(f"{path} lists no image; expected a row for each")
    seen = {}
    for number, row in enumerate(found, start=1):
        if row["path"]:
            row["path"] = PurePosixPath(row["path"]).as_posix()     # ./a.png is a.png
        if problem := _problem(row, path.parent, seen):
            raise UserError(f"row {number} of {path} {problem}")
        seen[row["path"]] = number
    return [{**row, "modality": MODALITIES[row["modality"]], "camera": int(row["camera"]),
             "person": row["person"].strip()} for row in found]


def _problem(row, root, seen):
    """Say what is wrong with a row, and the remedy; None if nothing is. Args: seen: path -> number of earlier rows."""
    if None in row or None in row.values():
        return f"has another number of cells than the first line; expected {len(COLUMNS)}. Correct it"
    path = PurePosixPath(row["path"])
    if not path.parts or path.is_absolute() or ".." in path.parts:
        return f"names the image {row['path']!r}; expected a path below the folder of {FILE}. Correct it"
    if row["path"] in seen:
        return f"names the image {row['path']} of row {seen[row['path']]} again; expected each once. Remove one"
    if row["split"] not in SPLITS:
        return f"has the split {row['split']!r}; expected {', '.join(SPLITS)}. Correct it"
    if row["modality"] not in MODALITIES:
        return f"has the modality {row['modality']!r}; expected {', '.join(MODALITIES)}. Correct it"
    if not row["camera"].isdecimal():
        return f"has the camera {row['camera']!r}; expected a number. Correct it"
    if row["split"] != "train" and not row["person"].strip():
        return f"names no person; expected one for every image of the split {row['split']}. Add it"
    if not (root / path).is_file():
        return f"names the image {row['path']}, which is missing; restore it or remove the row"
    return None
