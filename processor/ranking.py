"""Ranked lists of a test: as arrays, and as files for others to compute on."""
import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.checkpoint import write_atomically
from utils.metrics import ignored
from utils.modality import Modality

LISTED = 20         # gallery images per query in the CSV


@dataclass(frozen=True)
class Ranking:
    """The gallery of one trial in the order of every query; images that a query does not see come last."""

    gallery: np.ndarray     # (Q, G) positions in the test images, nearest first
    distance: np.ndarray    # (Q, G) cosine distance of each
    match: np.ndarray       # (Q, G) bool: seen, and of the query's person
    seen: np.ndarray        # (Q,) images that count

    @property
    def average_precision(self):
        """(Q,) mean precision at the true matches; NaN for queries without one."""
        hits = np.cumsum(self.match, axis=1)
        precision = np.where(self.match, hits / np.arange(1, hits.shape[1] + 1), 0).sum(axis=1)
        return np.where(hits[:, -1], precision / np.maximum(hits[:, -1], 1), np.nan)


def rank_trial(data, retrieval, features, trial=0):
    """The `Ranking` of a trial.

    Args: data: `DataSet`; retrieval: `Retrieval`; features: of its `Evaluation`; trial: index in retrieval.galleries.
    """
    m, shown = retrieval.query_modality, retrieval.galleries[trial]
    query, gallery = rows(features, m, retrieval.query), rows(features, m.other, shown)
    queries, candidates = data.test[m], data.test[m.other]
    persons = queries.persons[retrieval.query][:, None] == candidates.persons[shown]
    hidden = ignored(retrieval.rule, queries.persons[retrieval.query], candidates.persons[shown],
                     queries.cameras[retrieval.query], candidates.cameras[shown])
    hidden = np.zeros_like(persons) if hidden is None else hidden
    distance = 1 - query @ gallery.T
    order = np.argsort(np.where(hidden, np.inf, distance), axis=1, kind="stable")
    return Ranking(shown[order], np.take_along_axis(distance, order, axis=1),
                   np.take_along_axis(persons & ~hidden, order, axis=1), (~hidden).sum(axis=1))


def rows(features, modality, positions):
    """The float32 features (P, D) of test images at positions (P,), on the host."""
    known, values = features[modality]
    return values.float().cpu().numpy()[np.searchsorted(known, positions)]


def save_rankings(folder, data, retrievals, evaluations):
    """Write ranking_MODE.csv of every retrieval and features.npz with what they were computed from: their paths.

    The CSV holds the 20 nearest gallery images of every query and trial. features.npz holds `rgb_features` (N, D) and
    `rgb_paths`, `rgb_persons`, `rgb_cameras` (N,), the same for `ir`, and, as rows of those, `MODE_query` and
    `MODE_gallery_TRIAL`.
    """
    folder, arrays = Path(folder), {}
    known = {m: evaluations[0].features[m][0] for m in Modality}
    for m, images in data.test.items():
        arrays |= {f"{m.value}_features": rows(evaluations[0].features, m, known[m]),
                   f"{m.value}_paths": np.array(images.paths)[known[m]],
                   f"{m.value}_persons": images.persons[known[m]], f"{m.value}_cameras": images.cameras[known[m]]}
    written = []
    for retrieval, evaluation in zip(retrievals, evaluations):
        m = retrieval.query_modality
        arrays[f"{retrieval.mode}_query"] = np.searchsorted(known[m], retrieval.query)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["trial", "query", "query_person", "query_camera", "rank", "gallery", "gallery_person",
                        "gallery_camera", "distance", "match"])
        for index, trial in enumerate(retrieval.trials):
            arrays[f"{retrieval.mode}_gallery_{trial}"] = np.searchsorted(known[m.other], retrieval.galleries[index])
            table.writerows(_csv_rows(data, retrieval, rank_trial(data, retrieval, evaluation.features, index), trial))
        written.append(folder / f"ranking_{retrieval.mode}.csv")
        write_atomically(written[-1], lambda file, text=text: file.write(text.getvalue().encode()))
    written.append(folder / "features.npz")
    write_atomically(written[-1], lambda file: np.savez_compressed(file, **arrays))
    return written


def _csv_rows(data, retrieval, ranking, trial):
    queries, candidates = data.test[retrieval.query_modality], data.test[retrieval.query_modality.other]
    for q, position in enumerate(retrieval.query):
        query = (trial, queries.paths[position], queries.persons[position], queries.cameras[position])
        for rank in range(min(LISTED, ranking.seen[q])):
            g = ranking.gallery[q, rank]
            yield (*query, rank + 1, candidates.paths[g], candidates.persons[g], candidates.cameras[g],
                   f"{ranking.distance[q, rank]:.6f}", int(ranking.match[q, rank]))
