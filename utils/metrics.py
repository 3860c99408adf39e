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


def ignored(protocol, query_ids, gallery_ids, query_cams, gallery_cams):
    """Gallery images that a query does not see: (Q, G) bool, or None if it sees all; arguments as `rank_metrics`."""
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
    hidden = ignored(protocol, query_ids, gallery_ids,
                      *(None if c is None else np.asarray(c) for c in (query_cams, gallery_cams)))

    order = _ascending(distance)
    match = gallery_ids.astype(np.int64)[order] == query_ids[:, None]
    seen = None if hidden is None else ~np.take_along_axis(hidden, order, axis=1)
    if seen is not None:
        match &= seen
    query, place = np.divmod(np.flatnonzero(match), match.shape[1])       # true matches, nearest first within a query
    valid, start, total = np.unique(query, return_index=True, return_counts=True)
    if not len(valid):
        raise ValueError("no query has a match in the gallery")
    rank = 1 + place                                   # 1-based, among the images seen
    if seen is not None:
        rank = np.cumsum(seen, axis=1, dtype=np.int32)[query, place]
    hits = np.arange(len(rank)) - np.repeat(start, total) + 1
    average_precision = np.add.reduceat(hits / rank, start) / total
    hardest = rank[start + total - 1]
    first, longest = place[start], distance.shape[1]
    if protocol != "regdb":
        column_id = np.unique(gallery_ids, return_inverse=True)[1]
        first = _identities_before(order[valid], None if seen is None else seen[valid], first, column_id)
        longest = _longest_list(None if hidden is None else hidden[valid], column_id)
    cmc = np.cumsum(np.bincount(first, minlength=longest)[:longest]) / len(first)
    return RankMetrics(cmc[:MAX_RANK], float(average_precision.mean()), float((total / hardest).mean()))


def _ascending(distance):
    """np.argsort(distance, axis=1, kind="stable"), for float32 by sorting value and column as one integer: faster."""
    if distance.dtype != np.float32:
        return np.argsort(distance, axis=1, kind="stable")
    column_bits = distance.shape[1].bit_length()
    bits = (distance + np.float32(0)).view(np.int32)                # -0 becomes 0
    key = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)      # ascends as the floats do
    key <<= column_bits
    key |= np.arange(distance.shape[1])
    key.sort(axis=1)
    key &= (1 << column_bits) - 1
    return key


def _identities_before(order, seen, first, column_id):
    """How many identities come before each query's first match, each counted once: (Q,)."""
    before = np.arange(order.shape[1]) < first[:, None]
    if seen is not None:
        before &= seen
    query, place = np.divmod(np.flatnonzero(before), before.shape[1])
    met = np.zeros((len(order), column_id.max() + 1), dtype=bool)
    met[query, column_id[order[query, place]]] = True
    return met.sum(axis=1)


def _longest_list(hidden, column_id):
    """The most identities that any query sees."""
    if hidden is None:
        return column_id.max() + 1
    of_identity = np.eye(column_id.max() + 1, dtype=np.float32)[column_id]          # (G, identities)
    return int(((~hidden).astype(np.float32) @ of_identity > 0).sum(axis=1).max())
