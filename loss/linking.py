"""The start of an epoch's memories: the space in which clusters are linked, their links, and the method's memory.

MEMORY.MATCH_BY names the space:

    prototype    the memories' prototypes as they stand in each step, so links change within the epoch
    centroid     the clusters' mean features at the epoch's start
    projection   their mean projections, of unit length, in CLIP's joint space
    text         their mean texts: those that the fine-tune learned for train_prepare's labels of their images

Links of all spaces but the first hold for the whole epoch.
"""
import torch.nn.functional as F

from data.pseudo_labels import cluster_means
from loss.association import link, no_links
from loss.methods import method_class
from utils.distributed import ALONE
from utils.modality import Modality


def matching_space(settings):
    """Return the space of `MemorySettings`, the method's own if MEMORY.MATCH_BY names none or the method no links."""
    method = method_class(settings.method)
    return settings.match_by if settings.match_by and method.associate is not no_links else method.match_by


def start_heads(settings):
    """Return the model's heads that an epoch's start needs. Args: settings: `MemorySettings`."""
    return ("feature", "projection") if matching_space(settings) == "projection" else ("feature",)


def start_memory(embedded, labels, epoch, settings, guidance=None, links=None, processes=ALONE):
    """Link an epoch's clusters and start its memory.

    Args: embedded: Modality -> {"feature": (N, D), and in the space of projections "projection": (N, E)}; labels:
        Modality -> (N,) clusters; epoch: from 1; settings: `TrainSettings`; guidance: `TextGuidance` for texts;
        links: `Links` in place of the method's own; processes: of `utils.distributed`, the first of which links and
        relabels for all.
    Returns: Modality -> (N,) labels to train on, which the method may have changed; `CrossMemory`.
    """
    method, features = settings.method, {m: embedded[m]["feature"] for m in Modality}
    means = {m: processes.same(cluster_means(features[m], labels[m])) for m in Modality}
    if links is None:
        rows = _matching_rows(matching_space(settings.memory), embedded, means, labels, guidance)
        links = rows and processes.once(lambda: link(method.associate, *(rows[m] for m in Modality)))
    if epoch >= settings.memory.swap_epoch:
        clusters = labels
        labels = processes.once(lambda: method.relabel(features, clusters, settings.memory))
    start = {m: F.normalize(means[m], dim=1) for m in Modality} if method.unit_means else means
    return labels, settings.new_memory(start, epoch, links, labels, processes)


def _matching_rows(space, embedded, means, labels, guidance):
    """Return what clusters are linked by: Modality -> (K, ·), or None for the prototypes of each step."""
    if space == "centroid":
        return means
    if space == "projection":
        return {m: cluster_means(F.normalize(embedded[m]["projection"], dim=1), labels[m]) for m in Modality}
    return guidance.cluster_texts(labels) if space == "text" else None
