"""What the report page of a run shows beside its curves: ranked lists, clusters, a map, with small pictures.

The stages write it at their end, as OUTPUT_DIR/report_data/NAME.json; `utils.report` turns it into the page, and
needs neither model nor data set.
"""
import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.manifold import TSNE

from processor.diagnosis import majority
from processor.ranking import rank_trial, rows
from utils.checkpoint import write_atomically
from utils.modality import Modality
from utils.report import write_report
from utils.seeding import numpy_rng

FOLDER = "report_data"
PICTURE_HEIGHT = 104        # pixels
LISTS, NEAREST = 4, 10      # ranked lists of each kind, and images in each
SHEETS, MEMBERS = 5, 12     # clusters of each kind, and images of each
MAPPED_PERSONS, MAPPED_IMAGES = 40, 8       # of each person and modality
SAMPLED = 1000              # images of each modality whose distances are counted
BINS = 50


class Pictures:
    """Small JPEGs by name, each stored once. Args: banks: Modality -> `ImageBank`; prefix: of their names."""

    def __init__(self, banks, prefix):
        self.banks, self.prefix = banks, prefix
        self.content = {}

    def add(self, modality, position):
        """The name of an image's picture."""
        name = f"{self.prefix}-{modality.value}{position}"
        if name not in self.content:
            image = Image.fromarray(np.ascontiguousarray(self.banks[modality].images[position]))
            width = max(round(image.width * PICTURE_HEIGHT / image.height), 1)
            buffer = io.BytesIO()
            image.resize((width, PICTURE_HEIGHT), Image.LANCZOS).save(buffer, "JPEG", quality=82)
            self.content[name] = base64.b64encode(buffer.getvalue()).decode()
        return name


def save_report(folder, log, name, contents):
    """Write report_data/NAME.json and the page; whatever goes wrong is a line in the log, for it comes after training.

    Args: contents: a function that gives the dict of the file.
    """
    try:
        content = contents()
        write_atomically(Path(folder) / FOLDER / f"{name}.json", lambda file: file.write(json.dumps(content).encode()))
        log.info(f"page to look at: {write_report(folder)}")
    except Exception as error:      # no picture is worth a training run
        log.info(f"warning: the report could not be written ({type(error).__name__}: {error})")


def retrieval_content(name, data, banks, retrievals, evaluations):
    """The dict of a test: ranked lists of every retrieval, and the map and distances of the first's features.

    Args: name: of the file; banks: Modality -> `ImageBank` of the test images; the others as `evaluate_all`.
    """
    pictures, features = Pictures(banks, f"{name}-test"), evaluations[0].features
    tests = [_retrieval(data, *pair, pictures) for pair in zip(retrievals, evaluations)]
    return {"data": _data_table(data), "tests": tests, "map": _map(data, features),
            "distances": _distances(data, features), "images": pictures.content}


def stage_content(name, data, test_banks, retrieval, evaluation, train_banks, report, persons):
    """The dict of a finished training stage: its last test and its last clusters.

    Args: name: of the file; evaluation: of the last epoch; report: its `EpochReport`; persons: Modality -> (N,),
        or None where unknown.
    """
    content = retrieval_content(name, data, test_banks, [retrieval], [evaluation])
    pictures = Pictures(train_banks, f"{name}-train")
    content["clusters"] = _clusters(report.labels, report.pairs, persons, pictures)
    content["images"] |= pictures.content
    return content


def _data_table(data):
    return [{"split": split, "modality": images.modality.value, "persons": len(np.unique(images.persons)),
             "images": len(images), "cameras": {str(c): int((images.cameras == c).sum())
                                                for c in np.unique(images.cameras)}} for split, images in data.sets()]


def _retrieval(data, retrieval, evaluation, pictures):
    """Protocol, numbers, CMC (mean over the trials), and the best, worst and random lists of the first trial."""
    ranking = rank_trial(data, retrieval, evaluation.features)
    precision = ranking.average_precision
    scored = np.flatnonzero(~np.isnan(precision))
    by_precision = scored[np.argsort(precision[scored], kind="stable")]
    persons = data.test[retrieval.query_modality].persons[retrieval.query]
    chosen = {"best": _of_different_persons(by_precision[::-1], persons),
              "worst": _of_different_persons(by_precision, persons),
              "random": _of_different_persons(numpy_rng(0, "report lists").permutation(scored), persons)}
    shortest = min(len(result.cmc) for result in evaluation.per_trial)
    return {"protocol": evaluation.protocol, "mode": evaluation.mode, "trial": int(retrieval.trials[0]),
            "trials": len(retrieval.trials), "numbers": evaluation.mean(),
            "query_modality": retrieval.query_modality.value, "queries": len(retrieval.query),
            "gallery": len(retrieval.galleries[0]),
            "cmc": np.mean([result.cmc[:shortest] for result in evaluation.per_trial], axis=0).tolist(),
            "lists": [_list(kind, data, retrieval, ranking, precision, q, pictures)
                      for kind, queries in chosen.items() for q in queries]}


def _of_different_persons(order, persons):
    """The first LISTS entries of order whose persons differ, or as many as there are."""
    chosen = {}
    for entry in order:
        chosen.setdefault(persons[entry], entry)
        if len(chosen) == LISTS:
            break
    return list(chosen.values())


def _list(kind, data, retrieval, ranking, precision, q, pictures):
    m = retrieval.query_modality
    nearest = min(NEAREST, int(ranking.seen[q]))
    return {"kind": kind, "average_precision": float(precision[q]),
            "query": _shown(data, m, retrieval.query[q], pictures),
            "gallery": [{**_shown(data, m.other, ranking.gallery[q, rank], pictures),
                         "distance": float(ranking.distance[q, rank]), "right": bool(ranking.match[q, rank])}
                        for rank in range(nearest)]}


def _shown(data, modality, position, pictures):
    images = data.test[modality]
    return {"image": pictures.add(modality, position), "person": int(images.persons[position]),
            "camera": int(images.cameras[position]), "path": images.paths[position]}


def _sample(data, features, persons, each):
    """Modality -> positions of up to `each` images per person, of the persons given; drawn the same in every run."""
    rng, drawn = numpy_rng(0, "report sample"), {}
    for m in Modality:
        known = features[m][0]
        groups = [known[data.test[m].persons[known] == person] for person in persons]
        drawn[m] = np.sort(np.concatenate([rng.permutation(group)[:each] for group in groups]))
    return drawn


def _test_persons(data, features):
    return np.unique(np.concatenate([data.test[m].persons[features[m][0]] for m in Modality]))


def _map(data, features):
    """t-SNE (van der Maaten & Hinton, JMLR 2008) of some test images: points, persons, modalities."""
    persons = numpy_rng(0, "report map").permutation(_test_persons(data, features))[:MAPPED_PERSONS]
    drawn = _sample(data, features, persons, MAPPED_IMAGES)
    values = np.concatenate([rows(features, m, drawn[m]) for m in Modality])
    points = np.zeros((len(values), 2))
    if np.ptp(values, axis=0).max() > 1e-6:      # scikit-learn crashes where a collapsed model gives one feature to all
        points = TSNE(init="pca", random_state=0, perplexity=min(30.0, (len(values) - 1) / 3)).fit_transform(values)
    return {"points": np.round(points, 2).tolist(),
            "persons": np.concatenate([data.test[m].persons[drawn[m]] for m in Modality]).tolist(),
            "modalities": [m.value for m in Modality for _ in drawn[m]]}


def _distances(data, features):
    """Counts of cosine distances: {"edges": (BINS + 1,), "rgb"|"ir"|"across": {"same": (BINS,), "different": ...}}."""
    rng = numpy_rng(0, "report distances")
    drawn = {m: np.sort(rng.permutation(features[m][0])[:SAMPLED]) for m in Modality}
    values = {m: rows(features, m, drawn[m]) for m in Modality}
    found = {}
    for name, (a, b) in {"rgb": (Modality.RGB,) * 2, "ir": (Modality.IR,) * 2,
                         "across": tuple(Modality)}.items():
        pairs = np.triu(np.ones((len(drawn[a]), len(drawn[b])), bool), 1) if a is b else True
        same = data.test[a].persons[drawn[a]][:, None] == data.test[b].persons[drawn[b]]
        distance = 1 - values[a] @ values[b].T
        found[name] = {"same": distance[same & pairs], "different": distance[~same & pairs]}
    largest = max((v.max(initial=0) for kinds in found.values() for v in kinds.values()), default=0)
    edges = np.linspace(0, max(largest, 1e-3), BINS + 1)
    return {"edges": edges.tolist(), **{name: {kind: np.histogram(v, edges)[0].tolist() for kind, v in kinds.items()}
                                        for name, kinds in found.items()}}


def _clusters(labels, pairs, persons, pictures):
    """Contact sheets: the largest and most impure clusters and some outliers of each modality, and matched pairs."""
    sheets, rng = {"known": persons is not None}, numpy_rng(0, "report clusters")
    majorities = {m: majority(labels[m], persons[m])[0] for m in Modality} if persons else None

    def sheet(m, cluster, limit=MEMBERS):
        members = np.flatnonzero(labels[m] == cluster)
        content = {"modality": m.value, "cluster": int(cluster), "size": len(members)}
        shown = np.sort(rng.permutation(members)[:limit])
        if persons:
            content |= {"person": int(majorities[m][cluster]), "persons": len(np.unique(persons[m][members])),
                        "purity": float((persons[m][members] == majorities[m][cluster]).mean())}
        return {**content, "images": [_member(m, i, persons, pictures, majorities[m][cluster] if persons else None)
                                      for i in shown]}

    for m in Modality:
        sizes = np.bincount(labels[m][labels[m] >= 0])
        sheets[f"largest_{m.value}"] = [sheet(m, c) for c in np.argsort(-sizes, kind="stable")[:SHEETS]]
        if persons:
            purity = majority(labels[m], persons[m])[1] / np.maximum(sizes, 1)
            sheets[f"impure_{m.value}"] = [sheet(m, c) for c in np.argsort(purity, kind="stable")[:SHEETS]]
        outliers = np.flatnonzero(labels[m] < 0)
        sheets[f"outliers_{m.value}"] = {"size": len(outliers), "images": [
            _member(m, i, persons, pictures, None) for i in np.sort(rng.permutation(outliers)[:2 * MEMBERS])]}
    chosen = _chosen_pairs(pairs, majorities)
    sheets["pairs"] = [{"similarity": float(pairs[2][i]), "sides": [sheet(m, clusters[i], MEMBERS // 2)
                                                                      for m, clusters in zip(Modality, pairs)],
                        **({"right": _agree(pairs, majorities, i)} if persons else {})} for i in chosen]
    return sheets


def _member(m, position, persons, pictures, person):
    """A training image; "right" says whether it shows the cluster's person."""
    content = {"image": pictures.add(m, position)}
    if persons is not None:
        content["person"] = int(persons[m][position])
        if person is not None:
            content["right"] = bool(persons[m][position] == person)
    return content


def _agree(pairs, majorities, i):
    return bool(majorities[Modality.RGB][pairs[0][i]] == majorities[Modality.IR][pairs[1][i]])


def _chosen_pairs(pairs, majorities):
    """The most alike pairs; half of them right ones and half wrong ones where that is known."""
    order = np.argsort(-pairs[2], kind="stable")
    if majorities is None:
        return order[:2 * SHEETS]
    right = [i for i in order if _agree(pairs, majorities, i)]
    wrong = [i for i in order if not _agree(pairs, majorities, i)]
    return [*right[:SHEETS], *wrong[:SHEETS]]
