"""Chooses what the page of a run shows beside its curves: ranked lists, clusters, a map, with small pictures.

Makes the dict of OUTPUT_DIR/report_data/NAME.json, from which the page is written without model and data set.
"""
import hashlib

import numpy as np
from PIL import Image
from sklearn.manifold import TSNE

from clustering.quality import known_persons, majority
from report.lists import query_lists
from report.page import jpeg_text
from utils.modality import Modality
from utils.seeding import numpy_rng

PICTURE_HEIGHT = 128        # pixels
SHEETS, MEMBERS = 5, 12     # clusters of each kind, and images of each
LINKS, LINKS_SHOWN, LINKED_MEMBERS = 8, 3, 4     # links of each kind, those that are seen at first, images of a side
MAPPED_PERSONS, MAPPED_IMAGES = 40, 8       # of each person and modality
PERPLEXITY = 30             # of the map's t-SNE
SAMPLED, BINS = 1000, 50    # images of each modality whose distances are counted


def retrieval_content(data, banks, rankings, before=None):
    """Show a test: ranked lists of every retrieval, a map of the features, and their distances.

    Args: data: `DataSet`; banks: Modality -> `ImageBank` of the test images; rankings: list of
        `processor.ranking.Ranking`, the first trial of each retrieval, all of the same features; before: of
        `report.lists.baseline_lists`, for the same queries before and after.
    Returns: {"tests", "map", "distances", "images": name -> base64 JPEG}.
    """
    pictures = Pictures()
    return {"tests": [_test(data, ranking, before or {}, lambda m, i: pictures.add(banks[m].images[i]))
                      for ranking in rankings],
            "map": _map(data, rankings[0].evaluation), "distances": _distances(data, rankings[0].evaluation),
            "images": pictures}


def stage_content(data, test_banks, ranking, train_banks, labels, links, before=None):
    """Show a finished training stage: its last test and its last clusters.

    Args: data, test_banks, ranking: as `retrieval_content`; train_banks: Modality -> `ImageBank` of the training
        images; labels: Modality -> (N,) clusters, -1 is an outlier; links: `LinkedClusters`, or None where nothing
        is linked; before: as `retrieval_content`.
    Returns: that of `retrieval_content`, and "clusters".
    """
    content = retrieval_content(data, test_banks, [ranking], before)
    content["clusters"] = _clusters(labels, known_persons(data.train), links,
                                    lambda m, i: content["images"].add(train_banks[m].images[i]))
    return content


class Pictures(dict):
    """Small JPEGs of images by name, each once."""

    def add(self, image):
        """Keep the picture of an image, (H, W, 3) uint8: its name, which is made of its content."""
        text = jpeg_text(Image.fromarray(np.ascontiguousarray(image)), PICTURE_HEIGHT, PICTURE_HEIGHT)
        name = hashlib.sha256(text.encode()).hexdigest()[:20]
        self[name] = text
        return name


def _test(data, ranking, before, picture):
    """Show one retrieval: its protocol and ranked lists of its trial. Args: picture: as `query_lists`."""
    evaluation, (name, lists) = ranking.evaluation, before.get(ranking.evaluation.protocol, ("", None))
    if lists and not np.array_equal(lists["query"], ranking.query):
        name, lists = "", None
    return {"protocol": evaluation.protocol, "mode": evaluation.mode, "trial": ranking.trial, "before": name,
            "query_modality": ranking.query_modality.value, "queries": len(ranking.query),
            "gallery": ranking.gallery.shape[1], "lists": query_lists(data, ranking, lists, picture)}


def _map(data, evaluation):
    """Map some test images by t-SNE (van der Maaten & Hinton, JMLR 2008).

    Returns: {"points", "persons", "modalities", "cameras", "perplexity"}.
    """
    shown, rng = {key: [] for key in ("persons", "modalities", "cameras")}, numpy_rng(0, "report map")
    persons = {m: data.test[m].persons[known] for m, (known, _) in evaluation.features.items()}
    mapped, values = rng.permutation(np.unique(np.concatenate(list(persons.values()))))[:MAPPED_PERSONS], []
    for m, (known, features) in evaluation.features.items():
        rows = np.concatenate([rng.permutation(np.flatnonzero(persons[m] == person))[:MAPPED_IMAGES]
                               for person in mapped])
        values.append(features.float().cpu().numpy()[rows])
        for key, of in (("persons", persons[m]), ("cameras", data.test[m].cameras[known])):
            shown[key] += of[rows].tolist()
        shown["modalities"] += [m.value] * len(rows)
    values = np.concatenate(values)
    points, perplexity = np.zeros((len(values), 2)), min(float(PERPLEXITY), (len(values) - 1) / 3)
    if np.ptp(values, axis=0).max() > 1e-6:      # scikit-learn crashes where a collapsed model gives one feature to all
        points = TSNE(init="pca", random_state=0, perplexity=perplexity).fit_transform(values)
    return {"points": np.round(points, 2).tolist(), "perplexity": perplexity, **shown}


def _distances(data, evaluation):
    """Count cosine distances of visible to infrared images.

    Returns: {"edges": (BINS + 1,), "across": {"same", "different": (BINS,)}}.
    """
    rng, sides = numpy_rng(0, "report distances"), []
    for m, (known, features) in evaluation.features.items():
        rows = rng.permutation(len(known))[:SAMPLED]
        sides.append((data.test[m].persons[known][rows], features.float().cpu().numpy()[rows]))
    (rgb, x), (ir, y) = sides
    same, distance = rgb[:, None] == ir, 1 - x @ y.T
    edges = np.linspace(0, max(distance.max(), 1e-3), BINS + 1)
    return {"edges": edges.tolist(), "across": {kind: np.histogram(distance[pairs], edges)[0].tolist()
                                                for kind, pairs in (("same", same), ("different", ~same))}}


def _clusters(labels, persons, links, picture):
    """Show clusters by some of their images, drawn the same in every run.

    Args: labels, links: as `stage_content`; persons: Modality -> (N,), or None where unknown; picture: as
        `query_lists`, of the training images.
    Returns: of each modality "largest_rgb", "impure_rgb" where that is known, "outliers_rgb"; "links", the most alike
        of linked clusters, wrong ones and then as many right ones where that is known; "known", whether it is.
    """
    rng = numpy_rng(0, "report clusters")
    most = {m: majority(labels[m], persons[m]) for m in Modality} if persons else {}

    def sheet(m, cluster, limit):
        """Show a cluster, or outliers: number, size, up to `limit` images, and, where known, who is on them."""
        members = np.flatnonzero(labels[m] == cluster)
        chosen = np.sort(rng.permutation(members)[:limit])
        content = {"modality": m.value, "cluster": int(cluster), "size": len(members),
                   "images": [{"image": picture(m, i)} for i in chosen]}
        if persons:
            for image, i in zip(content["images"], chosen):
                image["person"] = int(persons[m][i])
        if persons and cluster >= 0:
            person, ids = int(most[m][0][cluster]), persons[m][members]
            content |= {"person": person, "persons": len(np.unique(ids)), "purity": float((ids == person).mean())}
            for image in content["images"]:
                image["right"] = image["person"] == person      # of its cluster's most frequent one
        return content

    shown = {"known": persons is not None, "links": []}
    for m in Modality:
        sizes = np.bincount(labels[m][labels[m] >= 0])
        kinds = {"largest": -sizes}
        if persons:
            kinds["impure"] = most[m][1] / np.maximum(sizes, 1)
        for kind, values in kinds.items():
            order = np.argsort(values, kind="stable")
            shown[f"{kind}_{m.value}"] = [sheet(m, cluster, MEMBERS) for cluster in order[sizes[order] > 0][:SHEETS]]
        shown[f"outliers_{m.value}"] = sheet(m, -1, 2 * MEMBERS)
    for right, positions in _links_by_kind(links, most).items():
        for rank, i in enumerate(positions[:LINKS]):
            link = {"similarity": float(links.similarity[i]), "more": rank >= LINKS_SHOWN,
                    "sides": [sheet(Modality.RGB, links.rgb[i], LINKED_MEMBERS),
                              sheet(Modality.IR, links.ir[i], LINKED_MEMBERS)]}
            shown["links"].append(link if right is None else {**link, "right": right})
    return shown


def _links_by_kind(links, most):
    """Sort links, the most alike first: {whether they are right: positions}, {None: positions} where that is unknown.

    Args: links: `LinkedClusters` or None; most: of each modality's clusters the persons of `majority`, {} if unknown.
    """
    if links is None:
        return {}
    order = np.argsort(-links.similarity, kind="stable")
    if not most:
        return {None: order}
    right = most[Modality.RGB][0][links.rgb] == most[Modality.IR][0][links.ir]
    return {False: order[~right[order]], True: order[right[order]]}
