"""Retrieval metrics: CMC, mAP and mINP, under the rule of each data set, without a loop over queries.

mAP averages the precision at each true match. mINP (Ye et al., "Deep Learning for Person Re-identification: A
Survey and Outlook", TPAMI 2021) is the number of matches over the rank of the hardest one.
"""
from typing import NamedTuple

import numpy as np

MAX_RANK = 20


class RankMetrics(NamedTuple):
    """Results as fractions of 1."""

    cmc: np.ndarray   # (R,) float64, R = min(20, longest possible list); cmc[0] is Rank-1
    mAP: float
    mINP: float


def _ignored(protocol, query_ids, gallery_ids, query_cams, gallery_cams):
    """Gallery images that a query does not see: (Q, G) bool, or None."""
    if protocol == "regdb":
        return None
    if query_cams is None or gallery_cams is None:
        raise ValueError(f"protocol {protocol!r} needs query_cams and gallery_cams")
    if protocol == "sysu":   # cameras 2 and 3 look at the same place
        return (query_cams == 3)[:, None] & (gallery_cams == 2)[None]
    return (query_ids[:, None] == gallery_ids[None]) & (query_cams[:, None] == gallery_cams[None])


def rank_metrics(distance, query_ids, gallery_ids, query_cams=None, gallery_cams=None, protocol="sysu"):
    """CMC, mAP and mINP of a distance matrix.

    Args:
        distance: (Q, G), smaller is nearer; ties keep the gallery's order.
        query_ids, query_cams: (Q,); gallery_ids, gallery_cams: (G,) integers. Cameras are unused for "regdb".
        protocol: "sysu": CMC counts each gallery identity once, at its best rank, and queries of camera 3 do not
            see gallery images of camera 2. "llcm": the same, but what is hidden are the images of the query's own
            person and camera. "regdb": every image counts.
    Returns:
        `RankMetrics` over the queries that have a match.
    Raises:
        ValueError: shapes disagree, a distance is NaN, the protocol is unknown, or no query has a match.
    """
    if protocol not in ("sysu", "regdb", "llcm"):
        raise ValueError(f"protocol {protocol!r} is unknown; choose sysu, regdb or llcm")
    distance = np.asarray(distance)
    query_ids, gallery_ids = np.asarray(query_ids), np.asarray(gallery_ids)
    if distance.shape != (len(query_ids), len(gallery_ids)):
        raise ValueError(f"distance has shape {distance.shape}; {len(query_ids)} queries and {len(gallery_ids)} "
                         "gallery images were given")
    if np.isnan(distance).any():
        raise ValueError("distances hold NaN")
    hidden = _ignored(protocol, query_ids, gallery_ids,
                      *(None if c is None else np.asarray(c) for c in (query_cams, gallery_cams)))

    order = np.argsort(distance, axis=1, kind="stable")
    match = gallery_ids[order] == query_ids[:, None]
    seen = np.ones_like(match) if hidden is None else ~np.take_along_axis(hidden, order, axis=1)
    match &= seen
    valid = match.any(axis=1)
    if not valid.any():
        raise ValueError("no query has a match in the gallery")
    order, match, seen = order[valid], match[valid], seen[valid]

    rank = np.cumsum(seen, axis=1)                              # 1-based, among the images seen
    hits = np.cumsum(match, axis=1)
    total = hits[:, -1]
    average_precision = np.where(match, hits / np.maximum(rank, 1), 0).sum(axis=1) / total
    hardest = np.where(match, rank, 0).max(axis=1)
    if protocol == "regdb":
        first, longest = np.argmax(match, axis=1), rank.shape[1]
    else:
        first, longest = _identities_before(order, seen, query_ids[valid], gallery_ids)
    cmc = np.cumsum(np.bincount(first, minlength=longest)[:longest]) / len(first)
    return RankMetrics(cmc[:MAX_RANK], float(average_precision.mean()), float((total / hardest).mean()))


def _identities_before(order, seen, query_ids, gallery_ids):
    """How many other identities come before each query's own: (Q,); and the longest list of identities."""
    size = order.shape[1]
    position = np.empty_like(order)
    np.put_along_axis(position, order, np.where(seen, np.arange(size), size), axis=1)
    ids, column_id = np.unique(gallery_ids, return_inverse=True)
    by_id = np.argsort(column_id, kind="stable")
    starts = np.searchsorted(column_id[by_id], np.arange(len(ids)))
    best = np.minimum.reduceat(position[:, by_id], starts, axis=1)          # (Q, identities)
    own = np.take_along_axis(best, np.searchsorted(ids, query_ids)[:, None], axis=1)
    return (best < own).sum(axis=1), int((best < size).sum(axis=1).max())
