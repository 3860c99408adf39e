"""Retrieval metrics: CMC, mAP and mINP, under the rule of each data set, a block of queries at a time.

mAP averages the precision at each true match. mINP (Ye et al., "Deep Learning for Person Re-identification: A
Survey and Outlook", TPAMI 2021) is the number of matches over the rank of the hardest one.
"""
from typing import NamedTuple

import numpy as np

MAX_RANK = 20
CACHED = 2 ** 16       # distances ranked at a time, so that they stay in the cache


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
        ValueError: shapes disagree, cameras are missing, a distance is NaN, the protocol is unknown, or no query has
            a match.
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
    query_cams, gallery_cams = (None if c is None else np.asarray(c) for c in (query_cams, gallery_cams))
    for cameras, ids in ((query_cams, query_ids), (gallery_cams, gallery_ids)):
        if protocol != "regdb" and cameras is not None and cameras.shape != ids.shape:
            raise ValueError(f"cameras have shape {cameras.shape}; their images have ids of shape {ids.shape}")

    slots = None if protocol == "regdb" else _identity_slots(gallery_ids)
    rows, parts = max(1, CACHED // max(1, len(gallery_ids))), []
    for start in range(0, len(query_ids), rows):
        block = slice(start, start + rows)
        hidden = ignored(protocol, query_ids[block], gallery_ids,
                         None if query_cams is None else query_cams[block], gallery_cams)
        match = query_ids[block, None] == gallery_ids
        if hidden is not None:
            match &= ~hidden
        if match.any():
            parts.append(_rank(*_keys(distance[block], hidden), match, slots))
    if not parts:
        raise ValueError("no query has a match in the gallery")
    before, length, average_precision, inverse_penalty = (np.concatenate(values) for values in zip(*parts))
    cmc = np.cumsum(np.bincount(before, minlength=length.max())) / len(before)
    return RankMetrics(cmc[:MAX_RANK], float(average_precision.mean()), float(inverse_penalty.mean()))


def _identity_slots(gallery_ids):
    """Columns (S, identities): all images of each identity, repeated up to the largest number."""
    _, identity, count = np.unique(gallery_ids, return_inverse=True, return_counts=True)
    place = np.minimum(np.arange(count.max(initial=0))[:, None], count - 1)
    return np.argsort(identity, kind="stable")[np.cumsum(count) - count + place]


def _keys(distance, hidden):
    """One integer per distance, so that a plain sort ranks: distance and column in one, below the query's number.

    Args: distance: (Q, G); hidden: (Q, G) bool or None.
    Returns: (Q, G) uint64, which ascend by query, distance and column; and (Q, 1), the key of all that is hidden.
    """
    queries, size = distance.shape
    if distance.dtype == np.float32:
        bits = (distance + np.float32(0)).view(np.int32)                     # -0 becomes 0
        value = (bits ^ (bits >> 31 | np.int32(-2 ** 31))).view(np.uint32)   # unsigned, ascends as the floats do
    else:
        value = np.argsort(np.argsort(distance, axis=1, kind="stable"), axis=1)
    column_bits = np.uint64(size.bit_length())
    number = np.arange(queries, dtype=np.uint64)[:, None] << (column_bits + np.uint64(32))
    last = number | np.uint64(2 ** 32 - 1) << column_bits                    # above infinity
    keys = value.astype(np.uint64)
    keys <<= column_bits
    keys |= number
    keys |= np.arange(size, dtype=np.uint64)
    if hidden is not None:
        np.copyto(keys, last, where=hidden)
    return keys, last


def _rank(keys, last, match, slots):
    """The numbers of every query that has a match.

    Args: keys, last: of `_keys`; match: (Q, G) bool, with at least one; slots: of `_identity_slots`, or None where CMC
        counts images.
    Returns: four arrays (V,): images or identities before the first match, how many the query sees at most, average
        precision, inverse negative penalty.
    """
    size = match.shape[1]
    query = np.flatnonzero(match) // size
    valid, start, total = np.unique(query, return_index=True, return_counts=True)
    nearest = np.sort(keys[match])                     # true matches, nearest first within a query
    rank = np.searchsorted(np.sort(keys, axis=1).ravel(), nearest) - query * size + 1
    hits = np.arange(len(rank)) - np.repeat(start, total) + 1
    average_precision = np.add.reduceat(hits / rank, start) / total
    before, length = rank[start] - 1, np.full(len(valid), size)
    if slots is not None:                              # each identity counts once, at its best image
        best = keys[:, slots[0]]
        for columns in slots[1:]:
            np.minimum(best, keys[:, columns], out=best)
        best = best[valid]
        before, length = ((best < limit).sum(axis=1) for limit in (nearest[start, None], last[valid]))
    return before, length, average_precision, total / rank[start + total - 1]
