"""Chooses what the page of a run shows beside its curves: ranked lists, clusters, a map, with small pictures.

Each function makes a dict for OUTPUT_DIR/report_data/NAME.json, from which the page is written without model and data
set.
"""
import numpy as np
from PIL import Image
from sklearn.manifold import TSNE

from clustering.quality import majority
from processor.ranking import features_at, rank_trial
from report.page import jpeg_text, tile_text
from utils.modality import Modality
from utils.seeding import numpy_rng

PICTURE_HEIGHT = 128        # pixels
LISTS, NEAREST = 4, 10      # ranked lists of each kind, and images in each
LISTED_PERSONS = 16         # persons with a ranked list of their own, to choose from
SHEETS, MEMBERS = 5, 12     # clusters of each kind, and images of each
MAPPED_PERSONS, MAPPED_IMAGES = 40, 8       # of each person and modality
PERPLEXITY = 30             # of the map's t-SNE
SAMPLED = 1000              # images of each modality whose distances are counted
BINS = 50


class Pictures:
    """Collects small JPEGs by name, each once. Args: banks: Modality -> `ImageBank`; prefix: of their names."""

    def __init__(self, banks, prefix):
        self.banks, self.prefix = banks, prefix
        self.by_name = {}

    def add(self, modality, position):
        """Keep the picture of an image: its name."""
        name = f"{self.prefix}-{modality.value}{position}"
        if name not in self.by_name:
            image = Image.fromarray(np.ascontiguousarray(self.banks[modality].images[position]))
            self.by_name[name] = jpeg_text(image, PICTURE_HEIGHT, PICTURE_HEIGHT)
        return name


def retrieval_content(name, data, banks, retrievals, evaluations):
    """Show a test: ranked lists of every retrieval, and map and distances of the features.

    Args: name: of the file; data: `DataSet`; banks: Modality -> `ImageBank` of the test images; retrievals,
        evaluations: lists of `Retrieval` and their `Evaluation`.
    Returns: {"data", "tests", "map", "distances", "images"}.
    """
    pictures, features = Pictures(banks, f"{name}-test"), evaluations[0].features
    tests = [_test(data, *pair, pictures) for pair in zip(retrievals, evaluations)]
    return {"data": _data_counts(data), "tests": tests, "map": _map(data, features, banks),
            "distances": _distances(data, features), "images": pictures.by_name}


def stage_content(name, data, test_banks, retrieval, evaluation, train_banks, labels, pairs, persons):
    """Show a finished training stage: its last test and its last clusters.

    Args: name: of the file; evaluation: `Evaluation` of the last epoch; train_banks: Modality -> `ImageBank` of the
        training images; labels: Modality -> (N,) clusters, -1 is an outlier; pairs: linked clusters, (M,) RGB
        clusters, (M,) IR clusters, (M,) similarities; persons: Modality -> (N,), or None where unknown.
    Returns: that of `retrieval_content`, and "clusters".
    """
    content = retrieval_content(name, data, test_banks, [retrieval], [evaluation])
    pictures = Pictures(train_banks, f"{name}-train")
    sheets = ContactSheets(labels, persons, pictures)
    content["clusters"] = {"known": persons is not None, **sheets.of_both_modalities(), "pairs": sheets.pairs(pairs)}
    content["images"] |= pictures.by_name
    return content


def _data_counts(data):
    """Count persons and images of every split and modality."""
    return [{"split": split, "modality": images.modality.value, "persons": len(np.unique(images.persons)),
             "images": len(images), "cameras": {str(c): int((images.cameras == c).sum())
                                                for c in np.unique(images.cameras)}} for split, images in data.sets()]


def _test(data, retrieval, evaluation, pictures):
    """Show one retrieval: protocol, numbers, CMC as mean over the trials, and ranked lists of the first trial."""
    ranking = rank_trial(data, retrieval, evaluation)
    shortest = min(len(result.cmc) for result in evaluation.per_trial)
    return {"protocol": evaluation.protocol, "mode": evaluation.mode, "trial": int(retrieval.trials[0]),
            "trials": len(retrieval.trials), "numbers": evaluation.mean(),
            "query_modality": retrieval.query_modality.value, "queries": len(retrieval.query),
            "gallery": len(retrieval.galleries[0]),
            "cmc": np.mean([result.cmc[:shortest] for result in evaluation.per_trial], axis=0).tolist(),
            "lists": [_ranked_list(kind, data, retrieval, ranking, q, pictures)
                      for kind, queries in _chosen_queries(data, retrieval, ranking).items() for q in queries]}


def _chosen_queries(data, retrieval, ranking):
    """Choose queries of different persons: {"best", "worst", "random", "person"} -> rows of the ranking.

    "best" and "worst" by average precision; "person" holds a random query of each of many persons.
    """
    precision = ranking.average_precision
    scored = np.flatnonzero(~np.isnan(precision))
    ascending = scored[np.argsort(precision[scored], kind="stable")]
    persons = data.test[retrieval.query_modality].persons[retrieval.query]
    chosen = {"best": ascending[::-1], "worst": ascending,
              "random": numpy_rng(0, "report lists").permutation(scored)}
    chosen["person"] = chosen["random"]
    for kind, order in chosen.items():
        first_of_person = np.sort(np.unique(persons[order], return_index=True)[1])
        chosen[kind] = order[first_of_person[:LISTED_PERSONS if kind == "person" else LISTS]]
    chosen["person"] = chosen["person"][np.argsort(persons[chosen["person"]], kind="stable")]
    return chosen


def _ranked_list(kind, data, retrieval, ranking, q, pictures):
    """Show a query (row q of the ranking), its nearest gallery images, and its first right image if that lies behind.

    Images that the protocol hides from the query are left out.
    """
    m = retrieval.query_modality

    def shown(rank):
        return {**_test_image(data, m.other, ranking.gallery[q, rank], pictures),
                "distance": float(ranking.distance[q, rank]), "right": bool(ranking.match[q, rank])}

    first = int(ranking.match[q].argmax())
    return {"kind": kind, "average_precision": float(ranking.average_precision[q]), "first_right": first + 1,
            "query": _test_image(data, m, retrieval.query[q], pictures),
            "gallery": [shown(rank) for rank in range(min(NEAREST, int(ranking.shown[q])))],
            "behind": shown(first) if first >= NEAREST else None}


def _test_image(data, modality, position, pictures):
    """Show a test image: its picture's name, person, camera and path."""
    images = data.test[modality]
    return {"image": pictures.add(modality, position), "person": int(images.persons[position]),
            "camera": int(images.cameras[position]), "path": images.paths[position]}


def _map(data, features, banks):
    """Map some test images by t-SNE (van der Maaten & Hinton, JMLR 2008).

    Returns: {"points", "persons", "modalities", "cameras", "perplexity", "tiles": all images in one small picture}.
    """
    persons = {m: data.test[m].persons[features[m][0]] for m in Modality}
    mapped = numpy_rng(0, "report map").permutation(np.unique(np.concatenate(list(persons.values()))))[:MAPPED_PERSONS]
    rng, drawn = numpy_rng(0, "report sample"), {}
    for m in Modality:
        groups = [features[m][0][persons[m] == person] for person in mapped]
        drawn[m] = np.sort(np.concatenate([rng.permutation(group)[:MAPPED_IMAGES] for group in groups]))
    values = np.concatenate([features_at(features, m, drawn[m]) for m in Modality])
    points, perplexity = np.zeros((len(values), 2)), min(float(PERPLEXITY), (len(values) - 1) / 3)
    if np.ptp(values, axis=0).max() > 1e-6:      # scikit-learn crashes where a collapsed model gives one feature to all
        points = TSNE(init="pca", random_state=0, perplexity=perplexity).fit_transform(values)
    return {"points": np.round(points, 2).tolist(), "perplexity": perplexity,
            "persons": np.concatenate([data.test[m].persons[drawn[m]] for m in Modality]).tolist(),
            "cameras": np.concatenate([data.test[m].cameras[drawn[m]] for m in Modality]).tolist(),
            "modalities": [m.value for m in Modality for _ in drawn[m]],
            "tiles": tile_text([banks[m].images[position] for m in Modality for position in drawn[m]])}


def _distances(data, features):
    """Count cosine distances: {"edges": (BINS + 1,), "rgb"|"ir"|"across": {"same": (BINS,), "different": ...}}."""
    rng = numpy_rng(0, "report distances")
    drawn = {m: np.sort(rng.permutation(features[m][0])[:SAMPLED]) for m in Modality}
    values = {m: features_at(features, m, drawn[m]) for m in Modality}
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


class ContactSheets:
    """Shows clusters by some of their images, drawn the same in every run.

    Args: labels: Modality -> (N,) clusters, -1 is an outlier; persons: Modality -> (N,), or None where unknown;
        pictures: `Pictures` of the training images.
    """

    def __init__(self, labels, persons, pictures):
        self.labels, self.persons, self.pictures = labels, persons, pictures
        self.rng = numpy_rng(0, "report clusters")
        self.majority = {m: majority(labels[m], persons[m]) for m in Modality} if persons else None

    def of_both_modalities(self):
        """Show the largest clusters, the most impure ones where that is known, and some outliers, of each modality."""
        shown = {}
        for m in Modality:
            sizes = np.bincount(self.labels[m][self.labels[m] >= 0])
            shown[f"largest_{m.value}"] = self._first(m, -sizes)
            if self.persons:
                shown[f"impure_{m.value}"] = self._first(m, self.majority[m][1] / np.maximum(sizes, 1))
            outliers = np.flatnonzero(self.labels[m] < 0)
            shown[f"outliers_{m.value}"] = {"size": len(outliers), "images": [
                self._image(m, i) for i in np.sort(self.rng.permutation(outliers)[:2 * MEMBERS])]}
        return shown

    def pairs(self, pairs):
        """Show the most alike of linked clusters, half of them right and half wrong where that is known.

        Args: pairs: (M,) RGB clusters, (M,) IR clusters, (M,) similarities.
        """
        order = np.argsort(-pairs[2], kind="stable")
        chosen = order[:2 * SHEETS]
        if self.persons:
            rgb, ir = (self.majority[m][0][clusters] for m, clusters in zip(Modality, pairs))
            chosen = np.r_[order[(rgb == ir)[order]][:SHEETS], order[(rgb != ir)[order]][:SHEETS]]
        return [{"similarity": float(pairs[2][i]), **({"right": bool(rgb[i] == ir[i])} if self.persons else {}),
                 "sides": [self._sheet(m, clusters[i], MEMBERS // 2) for m, clusters in zip(Modality, pairs)]}
                for i in chosen]

    def _first(self, modality, values):
        """Show the clusters with the smallest values (K,)."""
        found = [cluster for cluster in np.argsort(values, kind="stable") if (self.labels[modality] == cluster).any()]
        return [self._sheet(modality, cluster, MEMBERS) for cluster in found[:SHEETS]]

    def _sheet(self, modality, cluster, limit):
        """Show a cluster: its number, its size, up to `limit` images, and, where known, who is on them."""
        members = np.flatnonzero(self.labels[modality] == cluster)
        shown = np.sort(self.rng.permutation(members)[:limit])
        content = {"modality": modality.value, "cluster": int(cluster), "size": len(members)}
        person = None
        if self.persons:
            person, ids = self.majority[modality][0][cluster], self.persons[modality][members]
            content |= {"person": int(person), "persons": len(np.unique(ids)), "purity": float((ids == person).mean())}
        return {**content, "images": [self._image(modality, i, person) for i in shown]}

    def _image(self, modality, position, person=None):
        """Show a training image; "right" tells whether it is of the cluster's most frequent person."""
        content = {"image": self.pictures.add(modality, position)}
        if self.persons:
            content["person"] = int(self.persons[modality][position])
        if person is not None:
            content["right"] = content["person"] == int(person)
        return content
