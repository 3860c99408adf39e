"""How good an epoch's clusters are, where the identities of the training images are known.

Diagnosis only: it is handed what an epoch has produced, after the epoch, and gives numbers for logs; nothing flows
back into training.
"""
import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from utils.modality import Modality


def known_persons(sets):
    """Modality -> (N,) identities of `ImageSet`s (Modality -> set), or None where they name fewer than two persons."""
    persons = {m: images.persons for m, images in sets.items()}
    return persons if all(len(np.unique(ids)) > 1 for ids in persons.values()) else None


def majority(labels, persons):
    """The most frequent person of each cluster, the smaller identity on a tie, and how many of its images show it.

    Args: labels: (N,) clusters 0 to K - 1, -1 is in none; persons: (N,). Returns: (K,) persons, (K,) counts.
    """
    kept = labels >= 0
    ids, person = np.unique(persons, return_inverse=True)
    table = np.zeros((int(labels.max(initial=-1)) + 1, len(ids)), dtype=np.int64)
    np.add.at(table, (labels[kept], person[kept]), 1)
    return ids[table.argmax(axis=1)], table.max(axis=1)


def cluster_quality(labels, persons):
    """Agreement of clusters with persons; outliers count in their share alone.

    ARI: Hubert & Arabie, "Comparing partitions", 1985; NMI: mutual information over the mean of both entropies;
    purity: share of images that show their cluster's most frequent person.

    Args: labels: (N,) clusters, -1 is an outlier; persons: (N,).
    Returns: {"ari", "nmi", "purity", "clusters_per_person", "outlier_share"}.
    """
    kept = labels >= 0
    return {"ari": float(adjusted_rand_score(persons[kept], labels[kept])),
            "nmi": float(normalized_mutual_info_score(persons[kept], labels[kept])),
            "purity": float(majority(labels, persons)[1].sum() / max(kept.sum(), 1)),
            "clusters_per_person": (int(labels.max(initial=-1)) + 1) / len(np.unique(persons)),
            "outlier_share": float((~kept).mean())}


def matching_accuracy(pairs, labels, persons):
    """Share of matched clusters whose most frequent persons agree; 0 without a pair.

    Args: pairs: (M,) RGB clusters, (M,) IR clusters, what else there is of them; labels, persons: Modality -> (N,).
    """
    first, second = (majority(labels[m], persons[m])[0][clusters] for m, clusters in zip(Modality, pairs))
    return float((first == second).mean()) if len(first) else 0.0


def diagnose(labels, pairs, persons):
    """All numbers of an epoch: {"ari_rgb", "ari_ir", ..., "matching_accuracy"}; empty where persons is None."""
    if persons is None:
        return {}
    numbers = {f"{name}_{m.value}": value for m in Modality
               for name, value in cluster_quality(labels[m], persons[m]).items()}
    return {**numbers, "matching_accuracy": matching_accuracy(pairs, labels, persons)}
