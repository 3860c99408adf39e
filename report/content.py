"""Chooses what the page of a run shows beside its curves: ranked lists, clusters, a map, with small pictures.

Makes the dict of OUTPUT_DIR/report_data/NAME.json, from which the page is written without model and data set.
"""
import hashlib

import numpy as np
from PIL import Image
from sklearn.manifold import TSNE

from clustering.quality import known_persons, majority
from report.page import jpeg_text, tile_text
from report.ranked import query_lists
from utils.modality import Modality
from utils.seeding import numpy_rng

PICTURE_HEIGHT = 128        # pixels
SHEETS, MEMBERS = 5, 12     # clusters of each kind, and images of each
LINKS, LINKS_SHOWN, LINKED_MEMBERS = 8, 3, 4     # links of each kind, those that are seen at first, images of a side
MAPPED_PERSONS, MAPPED_IMAGES = 40, 8       # of each person and modality
PERPLEXITY = 30             # of the map's t-SNE
SAMPLED = 1000              # images of each modality whose distances are counted
BINS = 50


def retrieval_content(data, banks, rankings, before=None):
    """Show a test: ranked lists of every retrieval, and map and distances of the features.

    Args: data: `DataSet`; banks: Modality -> `ImageBank` of the test images; rankings: list of
        `processor.ranking.Ranking`, the first trial of each retrieval, all of the same features; before: of
        `report.ranked.baseline_lists`, for the same queries before and after.
    Returns: {"data", "tests", "map", "distances", "images"}.
    """
    pictures, features = Pictures(banks), _test_features(data, rankings[0].evaluation)
    return {"data": _data_counts(data), "tests": [_test(data, ranking, before or {}, pictures) for ranking in rankings],
            "map": _map(features, banks), "distances": _distances(features), "images": pictures.by_name}


def stage_content(data, test_banks, ranking, train_banks, labels, links, before=None):
    """Show a finished training stage: its last test and its last clusters.

    Args: data, test_banks, ranking: as `retrieval_content`; train_banks: Modality -> `ImageBank` of the training
        images; labels: Modality -> (N,) clusters, -1 is an outlier; links: `LinkedClusters`, or None where nothing
        is linked; before: as `retrieval_content`.
    Returns: that of `retrieval_content`, and "clusters".
    """
    content, pictures = retrieval_content(data, test_banks, [ranking], before), Pictures(train_banks)
    content["clusters"] = _clusters(labels, known_persons(data.train), links, pictures)
    content["images"] |= pictures.by_name
    return content


class Pictures:
    """Collects small JPEGs of the images in `banks` (Modality -> `ImageBank`), each once."""

    def __init__(self, banks):
        self.banks, self.by_name = banks, {}

    def add(self, modality, position):
        """Keep the picture of an image: its name, which is made of its content."""
        image = Image.fromarray(np.ascontiguousarray(self.banks[modality].images[position]))
        text = jpeg_text(image, PICTURE_HEIGHT, PICTURE_HEIGHT)
        name = hashlib.sha256(text.encode()).hexdigest()[:20]
        self.by_name[name] = text
        return name


def _data_counts(data):
    """Count persons and images of every split and modality."""
    return [{"split": split, "modality": images.modality.value, "persons": len(np.unique(images.persons)),
             "images": len(images), "cameras": {str(c): int((images.cameras == c).sum())
                                                for c in np.unique(images.cameras)}} for split, images in data.sets()]


def _test(data, ranking, before, pictures):
    """Show one retrieval: its protocol and ranked lists of its trial. Args: before: as `retrieval_content`."""
    evaluation, (name, lists) = ranking.evaluation, before.get(ranking.evaluation.protocol, ("", None))
    if lists and not np.array_equal(lists["query"], ranking.query):
        name, lists = "", None
    return {"protocol": evaluation.protocol, "mode": evaluation.mode, "trial": ranking.trial, "before": name,
            "query_modality": ranking.query_modality.value, "queries": len(ranking.query),
            "gallery": ranking.gallery.shape[1], "lists": query_lists(data, ranking, lists, pictures)}


def _test_features(data, evaluation):
    """Give what was embedded: Modality -> (N,) positions, (N,) persons, (N,) cameras, (N, D) float32 features."""
    return {m: (known, data.test[m].persons[known], data.test[m].cameras[known], values.float().cpu().numpy())
            for m, (known, values) in evaluation.features.items()}


def _map(features, banks):
    """Map some test images by t-SNE (van der Maaten & Hinton, JMLR 2008).

    Returns: {"points", "persons", "modalities", "cameras", "perplexity", "tiles": all images in one small picture}.
    """
    everybody = np.unique(np.concatenate([features[m][1] for m in Modality]))
    mapped, rng = numpy_rng(0, "report map").permutation(everybody)[:MAPPED_PERSONS], numpy_rng(0, "report sample")
    rows = {m: np.sort(np.concatenate([rng.permutation(np.flatnonzero(features[m][1] == person))[:MAPPED_IMAGES]
                                       for person in mapped])) for m in Modality}
    positions, persons, cameras, values = zip(*([found[rows[m]] for found in features[m]] for m in Modality))
    values = np.concatenate(values)
    points, perplexity = np.zeros((len(values), 2)), min(float(PERPLEXITY), (len(values) - 1) / 3)
    if np.ptp(values, axis=0).max() > 1e-6:      # scikit-learn crashes where a collapsed model gives one feature to all
        points = TSNE(init="pca", random_state=0, perplexity=perplexity).fit_transform(values)
    return {"points": np.round(points, 2).tolist(), "perplexity": perplexity,
            "persons": np.concatenate(persons).tolist(), "cameras": np.concatenate(cameras).tolist(),
            "modalities": [m.value for m, found in zip(Modality, positions) for _ in found],
            "tiles": tile_text([banks[m].images[i] for m, found in zip(Modality, positions) for i in found])}


def _distances(features):
    """Count cosine distances: {"edges": (BINS + 1,), "rgb"|"ir"|"across": {"same": (BINS,), "different": ...}}."""
    rng, found = numpy_rng(0, "report distances"), {}
    drawn = {m: np.sort(rng.permutation(len(features[m][0]))[:SAMPLED]) for m in Modality}
    persons, values = ({m: features[m][kind][drawn[m]] for m in Modality} for kind in (1, 3))
    for name, a, b in (("rgb", Modality.RGB, Modality.RGB), ("ir", Modality.IR, Modality.IR), ("across", *Modality)):
        pairs = np.triu(np.ones((len(drawn[a]), len(drawn[b])), bool), 1) if a is b else True
        same, distance = persons[a][:, None] == persons[b], 1 - values[a] @ values[b].T
        found[name] = {"same": distance[same & pairs], "different": distance[~same & pairs]}
    largest = max(counted.max(initial=0) for kinds in found.values() for counted in kinds.values())
    edges = np.linspace(0, max(largest, 1e-3), BINS + 1)
    return {"edges": edges.tolist(), **{name: {kind: np.histogram(v, edges)[0].tolist() for kind, v in kinds.items()}
                                        for name, kinds in found.items()}}


def _clusters(labels, persons, links, pictures):
    """Show clusters by some of their images, drawn the same in every run.

    Args: labels, links: as `stage_content`; persons: Modality -> (N,), or None where unknown; pictures: `Pictures` of
        the training images.
    Returns: of each modality "largest_rgb", "impure_rgb" where that is known, "outliers_rgb"; "links", the most alike
        of linked clusters, wrong ones and then as many right ones where that is known; "known", whether it is.
    """
    rng = numpy_rng(0, "report clusters")
    most = {m: majority(labels[m], persons[m]) for m in Modality} if persons else None

    def image(m, position, person=None):
        """Show a training image; "right" tells whether it is of its cluster's most frequent person."""
        content = {"image": pictures.add(m, position)}
        if persons:
            content["person"] = int(persons[m][position])
        return content if person is None else {**content, "right": content["person"] == int(person)}

    def sheet(m, cluster, limit):
        """Show a cluster: its number, its size, up to `limit` images, and, where known, who is on them."""
        members = np.flatnonzero(labels[m] == cluster)
        shown = np.sort(rng.permutation(members)[:limit])
        content, person = {"modality": m.value, "cluster": int(cluster), "size": len(members)}, None
        if persons:
            person, ids = most[m][0][cluster], persons[m][members]
            content |= {"person": int(person), "persons": len(np.unique(ids)), "purity": float((ids == person).mean())}
        return {**content, "images": [image(m, i, person) for i in shown]}

    shown = {"known": persons is not None}
    for m in Modality:
        sizes = np.bincount(labels[m][labels[m] >= 0])
        kinds = {"largest": -sizes, **({"impure": most[m][1] / np.maximum(sizes, 1)} if persons else {})}
        for kind, values in kinds.items():
            order = np.argsort(values, kind="stable")
            shown[f"{kind}_{m.value}"] = [sheet(m, cluster, MEMBERS) for cluster in order[sizes[order] > 0][:SHEETS]]
        outliers = np.flatnonzero(labels[m] < 0)
        shown[f"outliers_{m.value}"] = {"size": len(outliers), "images": [
            image(m, i) for i in np.sort(rng.permutation(outliers)[:2 * MEMBERS])]}
    rgb, ir, similarity = links or ((),) * 3
    order, right = np.argsort(np.negative(similarity), kind="stable"), None
    kinds = [order]
    if persons and len(order):
        right = most[Modality.RGB][0][rgb] == most[Modality.IR][0][ir]
        kinds = order[~right[order]], order[right[order]]
    shown["links"] = [{"similarity": float(similarity[i]), "more": rank >= LINKS_SHOWN,
                       **({"right": bool(right[i])} if persons else {}),
                       "sides": [sheet(m, pair[i], LINKED_MEMBERS) for m, pair in zip(Modality, (rgb, ir))]}
                      for kind in kinds for rank, i in enumerate(kind[:LINKS])]
    return shown
