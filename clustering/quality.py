"""Measures how well an epoch's clusters agree with the identities of the training images, where these are known.

It runs after an epoch, for the logs alone; nothing flows back into training.
"""
import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from utils.modality import Modality


def known_persons(sets):
    """Look up the identities of training images: Modality -> (N,), or None where they name fewer than two persons.

    Args: sets: Modality -> `ImageSet`.
    """
    persons = {m: images.persons for m, images in sets.items()}
    return persons if all(len(np.unique(ids)) > 1 for ids in persons.values()) else None


def majority(labels, persons):
    """Find the most frequent person of each cluster, the smaller identity on a tie, and how many images show it.

    Args: labels: (N,) clusters 0 to K - 1, -1 is in none; persons: (N,). Returns: (K,) persons, (K,) counts.
    """
    kept = labels >= 0
    ids, person = np.unique(persons, return_inverse=True)
    table = np.zeros((int(labels.max(initial=-1)) + 1, len(ids)), dtype=np.int64)
    np.add.at(table, (labels[kept], person[kept]), 1)
    return ids[table.argmax(axis=1)], table.max(axis=1)


def cluster_quality(labels, persons):
    """Measure how well clusters agree with persons; outliers count in `outlier_share` alone.

    ARI: Hubert & Arabie, "Comparing partitions", 1985; NMI: mutual information over the mean of both entropies;
    purity: share of images that show their cluster's most frequent person.

    Args: labels: (N,) clusters, -1 is an outlier; persons: (N,).
    Returns: {"ari", "nmi", "purity", "clusters_per_person", "outlier_share"}.
    """
    kept = labels >= 0
    return {"ari": float(adjusted_rand_score(persons[kept], labels[kept])),
            "nmi": float(normalized_mutual_info_score(persons[kept], labels[kept])),
            "purity": float(majority(labels, persons)[1].sum() / max(kept.sum(), 1)),
            "clusters_per_person": len(np.unique(labels[kept])) / len(np.unique(persons)),
            "outlier_share": float((~kept).mean())}


def link_numbers(linked):
    """Count links and those of a linked cluster: {"links", "links_per_cluster" (mean), "links_per_cluster_max",
    "link_similarity" (mean cosine)}; {} where nothing is linked.

    Args: linked: `LinkedClusters` or None.
    """
    if linked is None:
        return {}
    counts = np.concatenate([np.unique(clusters, return_counts=True)[1] for clusters in linked[:2]])
    return {"links": len(linked.rgb), "links_per_cluster": float(counts.mean()) if len(counts) else 0.0,
            "links_per_cluster_max": int(counts.max(initial=0)),
            "link_similarity": float(linked.similarity.mean()) if len(linked.rgb) else 0.0}


def link_accuracy(linked, labels, persons):
    """Give the share of links between clusters whose most frequent persons agree; 0 without a link.

    Args: linked: `LinkedClusters`; labels, persons: Modality -> (N,).
    """
    first, second = (majority(labels[m], persons[m])[0][clusters] for m, clusters in zip(Modality, linked))
    return float((first == second).mean()) if len(first) else 0.0


def diagnose(labels, linked, persons):
    """Compute all numbers of an epoch: {"ari_rgb", "ari_ir", ..., "link_accuracy"}; {} where persons is None.

    Args: labels, persons: Modality -> (N,); linked: `LinkedClusters`, None where nothing is linked.
    """
    if persons is None:
        return {}
    numbers = {f"{name}_{m.value}": value for m in Modality
               for name, value in cluster_quality(labels[m], persons[m]).items()}
    return {**numbers, **({"link_accuracy": link_accuracy(linked, labels, persons)} if linked else {})}
