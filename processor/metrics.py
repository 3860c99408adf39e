"""Retrieval metrics: how a gallery is ranked, CMC, mAP and mINP, and what each data set's protocol leaves out.

A function per metric, each of a matrix `match` (Q, G): whether the image at each rank of a query's list shows the
query's person. `rank_metrics` puts them together.
"""
from typing import NamedTuple

import numpy as np

MAX_RANK = 20
QUERIES_AT_ONCE = 256       # bounds the memory: a few arrays of this many rows and a column per gallery image


class RankMetrics(NamedTuple):
    """The metrics of each query that has a match, and their means, as fractions of 1."""

    counted: np.ndarray             # (Q,) bool, whether a query has a match; C have, and are scored
    found: np.ndarray               # (C, R) bool, of `cmc`; R = min(20, images or identities in the gallery)
    first: np.ndarray               # (C,) rank of the first match, from 1
    average_precision: np.ndarray   # (C,)
    inverse_penalty: np.ndarray     # (C,)

    @property
    def cmc(self):
        """(R,) float64; cmc[0] is Rank-1."""
        return self.found.mean(axis=0)

    @property
    def mAP(self):
        """Mean average precision."""
        return float(self.average_precision.mean())

    @property
    def mINP(self):
        """Mean inverse negative penalty."""
        return float(self.inverse_penalty.mean())

    @property
    def scored(self):
        """How many queries have a match; the others are in no mean."""
        return int(self.counted.sum())


def hidden_images(protocol, query_ids, gallery_ids, query_cams, gallery_cams):
    """Find the gallery images that a protocol leaves out of a query's list.

    Args: as `rank_metrics`. Returns: (Q, G) bool.
    Raises: ValueError: the protocol is unknown, or needs cameras that are missing.
    """
    if protocol not in ("sysu", "regdb", "llcm"):
        raise ValueError(f"protocol {protocol!r} is unknown; choose sysu, regdb or llcm")
    if protocol == "regdb":
        return np.zeros((len(query_ids), len(gallery_ids)), bool)
    if query_cams is None or gallery_cams is None:
        raise ValueError(f"protocol {protocol!r} needs query_cams and gallery_cams")
    if protocol == "sysu":   # cameras 2 and 3 look at the same place
        return (query_cams == 3)[:, None] & (gallery_cams == 2)
    return (query_ids[:, None] == gallery_ids) & (query_cams[:, None] == gallery_cams)


def rank_gallery(distance, hidden=None):
    """Sort the gallery of every query, nearest first.

    Args: distance: (Q, G) without NaN; hidden: (Q, G) bool, or None.
    Returns: (Q, G) columns of distance; equal distances keep the gallery's order, hidden images come last.
    """
    if hidden is not None:
        distance = np.where(hidden, np.nan, distance)       # numpy sorts NaN behind everything, infinity too
    return np.argsort(distance, axis=1, kind="stable")


def average_precision(match):
    """Average the precision at every match: AP = mean over the matches i of i / rank_i, ranks from 1.

    Args: match: (Q, G) bool. Returns: (Q,); NaN for a query without a match.
    """
    hits = np.cumsum(match, axis=1)
    precision = hits / np.arange(1, match.shape[1] + 1)
    total = match.sum(axis=1)
    return np.where(total, (precision * match).sum(axis=1) / np.maximum(total, 1), np.nan)


def inverse_negative_penalty(match):
    """Divide the number of matches by the rank of the last one: INP = matches / rank_last, ranks from 1.

    Its mean is mINP (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2021).

    Args: match: (Q, G) bool. Returns: (Q,); 0 for a query without a match.
    """
    last = match.shape[1] - np.argmax(match[:, ::-1], axis=1)
    return match.sum(axis=1) / last


def cmc(match, max_rank=MAX_RANK):
    """Tell whether a match is among the first r of a list: CMC(r) = 1 if rank_first <= r, else 0.

    Args: match: (Q, G) bool. Returns: (Q, R) bool, R = min(max_rank, G); its mean over the queries is the CMC curve.
    """
    return np.logical_or.accumulate(match[:, :max_rank], axis=1)


def identity_matches(order, query_ids, gallery_ids):
    """Rank the gallery's identities instead of its images: each stands once, where its nearest image does.

    Args: order: (Q, G) of `rank_gallery`; query_ids: (Q,); gallery_ids: (G,).
    Returns: (Q, I) bool, whether the identity at each of the I ranks is the query's.
    """
    rank = np.empty(order.shape, dtype=np.int32)
    np.put_along_axis(rank, order, np.arange(order.shape[1], dtype=np.int32)[None], axis=1)
    by_identity = np.argsort(gallery_ids, kind="stable")
    identities, start = np.unique(gallery_ids[by_identity], return_index=True)
    nearest = np.minimum.reduceat(rank[:, by_identity], start, axis=1)
    return identities[np.argsort(nearest, axis=1)] == query_ids[:, None]


def rank_metrics(distance, query_ids, gallery_ids, query_cams=None, gallery_cams=None, protocol="sysu"):
    """Compute CMC, mAP and mINP of a distance matrix.

    Args:
        distance: (Q, G) array, smaller is nearer; ties keep the gallery's order.
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers.
        query_cams: (Q,) integers; unused for "regdb".
        gallery_cams: (G,) integers; unused for "regdb".
        protocol: "sysu": CMC counts each gallery identity once, at its best rank, and queries of camera 3 do not
            see gallery images of camera 2. "llcm": the same, but what is hidden are the images of the query's own
            person and camera. "regdb": every image counts.

    Returns:
        `RankMetrics` of the queries that have a match: `cmc` (up to 20 ranks), `mAP`, `mINP`, fractions of 1.

    Raises:
        ValueError: shapes disagree, cameras are missing, a distance is NaN, the protocol is unknown, or no query has
            a match.

    Example:
        >>> found = rank_metrics([[0.1, 0.2, 0.3]], [7], [5, 7, 7], protocol="regdb")   # matches at ranks 2 and 3
        >>> found.cmc, round(found.mAP, 3), round(found.mINP, 3)
        (array([0., 1., 1.]), 0.583, 0.667)
    """
    distance, query_ids, gallery_ids = np.asarray(distance), np.asarray(query_ids), np.asarray(gallery_ids)
    query_cams, gallery_cams = (None if c is None else np.asarray(c) for c in (query_cams, gallery_cams))
    if distance.shape != (len(query_ids), len(gallery_ids)):
        raise ValueError(f"distance has shape {distance.shape}; {len(query_ids)} queries and {len(gallery_ids)} "
                         "gallery images were given")
    if np.isnan(distance).any():
        raise ValueError("distances hold NaN")
    found, has_match = [], np.zeros(len(query_ids), dtype=bool)
    for start in range(0, len(query_ids), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        ids, cameras = query_ids[block], None if query_cams is None else query_cams[block]
        hidden = hidden_images(protocol, ids, gallery_ids, cameras, gallery_cams)
        shown_match = (ids[:, None] == gallery_ids) & ~hidden
        counted = has_match[block] = shown_match.any(axis=1)
        if not counted.any():
            continue
        order = rank_gallery(distance[block], hidden)[counted]
        match = np.take_along_axis(shown_match[counted], order, axis=1)
        listed = match if protocol == "regdb" else identity_matches(order, ids[counted], gallery_ids)
        found.append((cmc(listed), listed.argmax(axis=1) + 1, average_precision(match),
                      inverse_negative_penalty(match)))
    if not found:
        raise ValueError("no query has a match in the gallery")
    return RankMetrics(has_match, *(np.concatenate(values) for values in zip(*found)))
