"""Ranked lists for the page: of which queries, and their nearest images, by a model and by the untrained one before it.

test.py keeps the nearest images of every query, so that a later test can show the same queries before and after.
"""
from pathlib import Path

import numpy as np

from report.run_files import BASELINE, CONTENT_FOLDER, read_run
from utils.checkpoint import write_atomically
from utils.seeding import numpy_rng

FILE = f"{CONTENT_FOLDER}/lists.npz"
NEAREST = 10            # images in a list
LISTS, PAIRS = 4, 2     # lists of each kind; of each kind before and after
PERSONS = 8            # with a list of their own, to choose from
PERFECT = 0.9995        # average precision that is shown as 100 %


def nearest_images(ranking):
    """Reduce a `processor.ranking.Ranking` to what lists show of each of its Q queries: a dict of arrays.

    "query" (Q,) and "gallery" (Q, 10) are positions in the test images, -1 where the protocol shows no more;
    "distance", "right" (Q, 10); "average_precision", "first", "first_image", "first_distance" (Q,): the first right
    image, its rank from 0.
    """
    rows, first = np.arange(len(ranking.query)), ranking.match.argmax(axis=1)
    near = np.s_[:, :NEAREST]
    hidden = np.arange(ranking.gallery.shape[1]) >= ranking.shown[:, None]
    return {"query": ranking.query, "gallery": np.where(hidden, -1, ranking.gallery)[near],
            "distance": ranking.distance[near], "right": ranking.match[near], "first": first,
            "average_precision": ranking.average_precision, "first_image": ranking.gallery[rows, first],
            "first_distance": ranking.distance[rows, first]}


def save_nearest(folder, rankings):
    """Write the `nearest_images` of a test's retrievals into its folder. Raises: UserError: as `write_atomically`."""
    arrays = {f"{ranking.evaluation.mode}/{name}": values for ranking in rankings
              for name, values in nearest_images(ranking).items()}
    write_atomically(Path(folder) / FILE, lambda file: np.savez_compressed(file, **arrays))


def baseline_lists(folder):
    """Read the lists of the untrained model, where it was tested as the run or the test in a folder was.

    Returns: protocol -> (name of the model, `nearest_images`).
    """
    found = {}
    for tested in read_run(folder).tests:
        path = tested.path / FILE
        if tested.of == BASELINE and not tested.differs and path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                start = f"{tested.record['mode']}/"
                found[tested.record["protocol"]] = tested.record["checkpoint"], {
                    name.removeprefix(start): stored[name] for name in stored.files if name.startswith(start)}
    return found


def query_lists(data, ranking, before, pictures):
    """Show queries with their nearest images: [{"kind", "query", "before": a list or None, **a list}].

    A list is {"average_precision", "first_right": rank, "gallery": images, "behind": the first right image where it is
    not among them}. Kinds are those of `_chosen`.

    Args: data: `DataSet`; ranking: `Ranking`; before: `nearest_images` of the untrained model, or None; pictures:
        `report.content.Pictures`.
    """
    m, after = ranking.query_modality, nearest_images(ranking)

    def image(modality, position, **more):
        images = data.test[modality]
        return {"image": pictures.add(modality, position), "person": int(images.persons[position]),
                "camera": int(images.cameras[position]), "path": images.paths[position], **more}

    def shown(lists, q):
        first, gallery = int(lists["first"][q]), lists["gallery"][q]
        return {"average_precision": float(lists["average_precision"][q]), "first_right": first + 1, "gallery": [
            image(m.other, position, distance=float(distance), right=bool(right)) for position, distance, right
            in zip(gallery, lists["distance"][q], lists["right"][q]) if position >= 0],
            "behind": None if first < len(gallery) else image(
                m.other, lists["first_image"][q], distance=float(lists["first_distance"][q]), right=True)}

    persons = data.test[m].persons[ranking.query]
    return [{"kind": kind, "query": image(m, ranking.query[q]), **shown(after, q),
             "before": before and shown(before, q)}
            for kind, queries in _chosen(after, before, persons).items() for q in queries]


def _chosen(after, before, persons):
    """Choose queries, of different persons in each kind: {kind: rows of the ranking}.

    "most", "least" and "lost": those that gained most and least average precision, and lost most; without the baseline,
    or a change, "worst" and "random". "least" and "random" leave out perfect ones, which say nothing. "person": a
    random query of each of many persons.
    """
    precision = after["average_precision"]
    scored = np.flatnonzero(~np.isnan(precision))
    drawn = numpy_rng(0, "report lists").permutation(scored)

    def of_different_persons(order, most):
        return order[np.sort(np.unique(persons[order], return_index=True)[1])[:most]]

    def lowest(values, wanted=True):
        among = scored[np.broadcast_to(wanted, len(precision))[scored]]
        return among[np.argsort(values[among], kind="stable")]

    by_person = of_different_persons(drawn, PERSONS)
    by_person = {"person": by_person[np.argsort(persons[by_person], kind="stable")]}
    telling = precision < PERFECT
    if before is not None:
        gain = precision - before["average_precision"]
        telling |= before["average_precision"] < PERFECT
        kinds = {"most": lowest(-gain, gain > 0), "least": lowest(gain, telling & (gain >= 0)),
                 "lost": lowest(gain, gain < 0)}
        if any(map(len, kinds.values())):
            return {kind: of_different_persons(order, PAIRS) for kind, order in kinds.items()} | by_person
    return {"worst": of_different_persons(lowest(precision), LISTS),
            "random": of_different_persons(drawn[telling[drawn]], LISTS), **by_person}
