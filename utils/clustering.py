"""Pseudo labels from features: k-reciprocal Jaccard distance and DBSCAN, without an N x N matrix.

The distance is that of Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding"
(CVPR 2017), as the clustering methods of the field use it. Everything up to DBSCAN is torch on the device
of the features: neighbours are (N, k1), the encoding V and the distances <= eps are sparse.

    neighbours = k_nearest(x, k1, index)              # exact, FAISS or torch; or approximate, FAISS
    V = reciprocal_encoding(x, neighbours)            # sparse (N, N), rows sum to 1
    V = query_expansion(V, neighbours, k2)            # mean of V over the first k2 neighbours
    distances = jaccard_graph(V, eps)                 # sparse (N, N), entries <= eps
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.cluster import DBSCAN

from utils.errors import UserError
from utils.runtime import gpu_rounding

try:
    import faiss
    import faiss.contrib.torch_utils  # noqa: F401 - lets FAISS take tensors, those on a GPU without a way round the host
except ImportError:  # the torch search below takes its place
    faiss = None

BLOCK_ROWS = 1024           # rows of one matrix product of the search
PIECE_ELEMENTS = 1 << 18    # of temporary tensors that are read at random: small enough for the cache
IVF_PROBES = 24             # lists that a search reads: finds 95 % of the neighbours of 20,000 hard rows (benchmarks/)
IVF_SEED, IVF_SAMPLE, IVF_ROUNDS = 0, 32, 10    # of the k-means of its lists: images per list, and iterations
HNSW_LINKS = 32             # of each row in the graph
HNSW_SPARE = 16             # candidates that a search keeps beyond k: finds 99 % of them


class SparseRows(NamedTuple):
    """A sparse (N, N) matrix in CSR order: entry e lies at (row[e], column[e]); rows ascend, then columns."""

    row: torch.Tensor      # (M,) int64
    column: torch.Tensor   # (M,) int64
    value: torch.Tensor    # (M,) float32
    start: torch.Tensor    # (N + 1,) int64, row i is start[i]:start[i + 1]


class Neighbours(NamedTuple):
    """The k nearest rows of each row, itself included, nearest first."""

    index: torch.Tensor       # (N, k) int64
    similarity: torch.Tensor  # (N, k) float32, inner products


def cluster(features, k1, k2, eps, min_samples, index="exact"):
    """DBSCAN on the k-reciprocal Jaccard distance of features.

    Args:
        features: (N, D) float32 array or tensor; rows are L2-normalised here if they are not yet.
        k1: neighbours that count as near; k2: neighbours whose encodings are averaged (1: none are).
        eps: largest Jaccard distance of two neighbours, in [0, 1]; min_samples: neighbours (itself
            included) that make a core point.
        index: how neighbours are searched, "exact", "ivf" or "hnsw"; see `k_nearest`.
    Returns:
        (N,) int64 array of labels from 0 on; -1 marks outliers.
    Raises:
        ValueError: features are not (N, D) or not finite, or the index is unknown.
        UserError: the index needs FAISS, which is not installed.
    """
    features = torch.as_tensor(features)
    if features.ndim != 2:
        raise ValueError(f"features have shape {tuple(features.shape)}; expected (N, D)")
    if len(features) == 0:
        return np.empty(0, dtype=np.int64)
    if not torch.isfinite(features).all():
        raise ValueError("features hold NaN or Inf; clustering needs finite values")
    distances = jaccard_distances(features, k1, k2, eps, index)
    labels = DBSCAN(eps=max(eps, 1e-12), min_samples=min_samples, metric="precomputed").fit_predict(distances)
    return labels.astype(np.int64)


@torch.no_grad()
def jaccard_distances(features, k1, k2, eps, index="exact"):
    """Jaccard distances <= eps as a scipy CSR matrix (N, N); exact zeros (the diagonal) are stored."""
    with gpu_rounding("fp32"):
        features = F.normalize(features.float(), dim=1)
        neighbours = k_nearest(features, k1, index)
        encoding = reciprocal_encoding(features, neighbours, k1)
        encoding = query_expansion(encoding, neighbours.index[:, :k2])
        return jaccard_graph(encoding, eps)


def check_index(index):
    """Raises: UserError: an index other than "exact" without FAISS."""
    if index != "exact" and faiss is None:
        raise UserError(f"CLUSTER.INDEX is {index}, which needs FAISS, and FAISS is not installed here; install the "
                        "packages of requirements.txt, or set CLUSTER.INDEX to exact")


def k_nearest(features, k, index="exact"):
    """The k largest inner products of each row of features (N, D), L2-normalised, with all rows: `Neighbours`.

    "exact": by FAISS where it is installed (on the GPU where FAISS and the features are), else by torch. "ivf": reads
    the rows near the nearest of 4 sqrt(N) centroids; "hnsw": walks a graph of near rows, on the host. These two miss
    a few neighbours, never the row itself; they pay where N is large.

    Raises: ValueError: unknown index. UserError: `check_index`.
    """
    check_index(index)
    k = min(k, len(features))
    on_gpu = features.device.type == "cuda" and faiss is not None and faiss.get_num_gpus() > 0
    if index == "exact":
        if faiss is None or on_gpu != (features.device.type == "cuda"):
            return _k_nearest_torch(features, k)
        return _search_faiss(faiss.IndexFlatIP(features.shape[1]), features, k, on_gpu)
    if index == "ivf":
        return _with_themselves(features, _search_faiss(_ivf_index(features), features, k, on_gpu))
    if index == "hnsw":
        return _with_themselves(features, _search_faiss(_hnsw_index(features, k), features, k, on_gpu=False))
    raise ValueError(f"index is {index!r}; expected exact, ivf or hnsw")


def _search_faiss(index, features, k, on_gpu):
    if on_gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), features.device.index or 0, index)
    x = features.contiguous() if on_gpu else features.cpu().contiguous()
    index.add(x)
    similarity, neighbour = index.search(x, k)
    return Neighbours(neighbour.to(features.device), similarity.to(features.device))


def _ivf_index(features):
    """A FAISS index of lists of near rows, its centroids found by k-means on a sample of features (N, D)."""
    n, dim = features.shape
    lists = min(int(4 * n ** 0.5), n)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(IVF_PROBES, lists)
    index.cp.seed, index.cp.niter = IVF_SEED, IVF_ROUNDS
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, IVF_SAMPLE
    index.train(features.cpu().contiguous())
    return index


def _hnsw_index(features, k):
    """A FAISS index that links each row of features (N, D) with near ones, to be searched for k neighbours."""
    index = faiss.IndexHNSWFlat(features.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = k + HNSW_SPARE
    return index


def _with_themselves(features, neighbours):
    """Rows that an approximate search left short (-1) or without themselves are searched exactly, in place."""
    index, similarity = neighbours
    own = torch.arange(len(index), device=index.device)
    broken = torch.nonzero((index < 0).any(1) | (index != own[:, None]).all(1))[:, 0]
    for rows in broken.split(BLOCK_ROWS):
        product = features[rows] @ features.T
        itself = product.gather(1, rows[:, None])
        product.scatter_(1, rows[:, None], torch.inf)       # first, however many duplicates it has
        similarity[rows], index[rows] = torch.topk(product, index.shape[1], dim=1)
        similarity[rows, 0] = itself[:, 0]
    return neighbours


def _k_nearest_torch(features, k):
    """Each product once: a block of rows meets the rows from its first on, and both sides keep their best."""
    n = len(features)
    index = torch.zeros(n, k, dtype=torch.int64, device=features.device)
    best = torch.full((n, k), -torch.inf, device=features.device)
    for start in range(0, n, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n)
        product = features[start:stop] @ features[start:].T
        _keep_best(index[start:stop], best[start:stop], product, start)
        for later in range(stop, n, BLOCK_ROWS):
            part = slice(later, later + BLOCK_ROWS)
            tile = product[:, later - start:later - start + BLOCK_ROWS].T.contiguous()
            _keep_best(index[part], best[part], tile, start)
    return Neighbours(index, best)


def _keep_best(index, best, product, first):
    """Merge products (R, C) with columns first .. first + C - 1 into the best k so far, in place."""
    value, column = torch.topk(product, min(best.shape[1], product.shape[1]), dim=1)
    value, order = torch.topk(torch.cat([best, value], 1), best.shape[1], dim=1)
    best.copy_(value)
    index.copy_(torch.cat([index, column + first], 1).gather(1, order))


def _reciprocal(index, k):
    """Mark which of the first k neighbours of each row have that row among their own first k: (N, k) bool."""
    near, own = index[:, :k], torch.arange(len(index), device=index.device)[:, None]
    return torch.isin(own * len(index) + near, near * len(index) + own)


def reciprocal_encoding(features, neighbours, k1):
    """The encoding V: softmax of -(2 - 2 cos) over each row's expanded k-reciprocal neighbours.

    As in the released code, the half-size reciprocal set of a neighbour reads round(k1 / 2) + 1 columns, the row
    itself being the first.

    Args:
        features: (N, D), L2-normalised; neighbours: the first k1 of each row.
    Returns:
        `SparseRows` (N, N) whose rows sum to 1.
    """
    index, similarity = neighbours
    n, k = index.shape
    is_near, is_half = _reciprocal(index, k), _reciprocal(index, min(int(np.around(k1 / 2)) + 1, k))
    own, slot = torch.nonzero(is_near, as_tuple=True)
    near = index[is_near]
    added = _half_set_members(own, near, index[:, :is_half.shape[1]][is_half], is_half.sum(1))

    key = torch.cat([own * n + near, added])
    cosine = torch.cat([similarity[is_near], _row_products(features, added // n, added % n)])
    # A row that is nobody's reciprocal neighbour (many exact duplicates) encodes itself.
    alone = torch.nonzero(~is_near.any(1))[:, 0]
    key, cosine = torch.cat([key, alone * (n + 1)]), torch.cat([cosine, cosine.new_ones(len(alone))])
    key, order = torch.sort(key)
    return _softmax_rows(_sparse_rows(key, cosine.index_select(0, order), n))


def _half_set_members(own, near, half, half_size):
    """What the half-size sets of its neighbours add to each row's reciprocal neighbours.

    A set counts if more than 2/3 of it are reciprocal neighbours of the row already.

    Args: own, near: (M,) each row (ascending) and its reciprocal neighbours; half: the half-size sets of all rows one
        after the other; half_size: (N,) their lengths.
    Returns: ascending keys row * N + column, without repeats.
    """
    n = len(half_size)
    half_start = torch.cumsum(half_size, 0) - half_size
    rows = max(1, PIECE_ELEMENTS // n)
    bounds = torch.searchsorted(own, torch.arange(0, n + rows, rows, device=own.device)).tolist()
    is_member = torch.zeros(rows * n, dtype=torch.bool, device=own.device)
    added = [own.new_empty(0)]
    for block, (first, last) in enumerate(zip(bounds, bounds[1:])):
        base, candidate = (own[first:last] - block * rows) * n, near[first:last]
        is_member[base + candidate] = True
        size = half_size.index_select(0, candidate)
        position, pair = _ragged(half_start.index_select(0, candidate), size)
        key = half.index_select(0, position).add_(base.index_select(0, pair))
        inside = is_member.index_select(0, key)
        overlap = torch.zeros_like(size).index_add_(0, pair, inside.long())
        new = (overlap * 3 > size * 2).index_select(0, pair) & ~inside
        added.append(torch.unique(key[new]) + block * rows * n)
        is_member[base + candidate] = False
    return torch.cat(added)


def _row_products(features, row, column):
    """Inner products of features[row] with features[column]: (M,)."""
    size = max(1, PIECE_ELEMENTS // features.shape[1])
    product = features.new_empty(len(row))      # small pieces in a list would keep the freed temporaries from reuse
    for start in range(0, len(row), size):
        part = slice(start, start + size)
        torch.sum(features.index_select(0, row[part]) * features.index_select(0, column[part]), 1, out=product[part])
    return product


def _sparse_rows(key, value, n):
    """`SparseRows` from ascending keys row * n + column."""
    row = torch.div(key, n, rounding_mode="floor")
    start = torch.zeros(n + 1, dtype=torch.int64, device=key.device)
    torch.cumsum(torch.bincount(row, minlength=n), 0, out=start[1:])
    return SparseRows(row, key - row * n, value, start)


def _softmax_rows(cosine):
    """Softmax of -(2 - 2 cos) over each row; exponents are at most 0, so nothing overflows."""
    weight = torch.exp(2 * cosine.value - 2)
    total = torch.zeros(len(cosine.start) - 1, device=weight.device).index_add_(0, cosine.row, weight)
    return cosine._replace(value=weight / total.index_select(0, cosine.row))


def _ragged(start, count):
    """Positions start[e] .. start[e] + count[e] - 1 for all e in turn, and the e of each."""
    owner = torch.repeat_interleave(count)
    first = torch.cumsum(count, 0) - count
    return (start - first).index_select(0, owner) + torch.arange(len(owner), device=count.device), owner


def query_expansion(encoding, near):
    """Mean of V over the rows near (N, k2) of each row: `SparseRows`; k2 = 1 changes nothing."""
    n, k2 = near.shape
    if k2 <= 1:
        return encoding
    size = encoding.start.diff()
    rows = max(1, int(PIECE_ELEMENTS / max(1.0, size.float().mean().item() * k2)))
    keys, values = [], []
    for start in range(0, n, rows):
        block = near[start:start + rows].flatten()
        position, owner = _ragged(encoding.start.index_select(0, block), size.index_select(0, block))
        key, order = torch.sort((owner // k2 + start) * n + encoding.column.index_select(0, position))
        key, where = torch.unique_consecutive(key, return_inverse=True)
        value = encoding.value.index_select(0, position.index_select(0, order))
        values.append(torch.zeros(len(key), device=key.device).scatter_add_(0, where, value))
        keys.append(key)
    return _sparse_rows(torch.cat(keys), torch.cat(values) / k2, n)


def jaccard_graph(encoding, eps):
    """Distances 1 - s / (2 - s) <= eps, s = sum_j min(V_ij, V_kj), as a scipy CSR matrix (N, N).

    Only rows that share a column meet: each entry (i, j) is paired with the later entries (k, j) of its column, and
    a block of rows i sums its minima in a dense buffer over the rows k from the block's first on.
    """
    n = len(encoding.start) - 1
    by_column = torch.argsort(encoding.column, stable=True)      # columns ascend, rows ascend within
    row_of, value_of = encoding.row.index_select(0, by_column), encoding.value.index_select(0, by_column)
    column_end = torch.cumsum(torch.bincount(encoding.column, minlength=n), 0)
    after = torch.empty_like(by_column)
    after[by_column] = torch.arange(1, len(by_column) + 1, device=by_column.device)
    count = column_end.index_select(0, encoding.column) - after  # later entries of the column

    least_shared = max(0.0, 2 * (1 - eps) / (2 - eps) - 1e-5)    # a little less than distance eps needs
    found = []
    for first, last in _row_blocks(torch.cumsum(count, 0)[encoding.start[1:] - 1].cpu().numpy()):
        width = n - first
        entries = slice(int(encoding.start[first]), int(encoding.start[last]))
        position, owner = _ragged(after[entries], count[entries])
        least = torch.minimum(encoding.value[entries].index_select(0, owner), value_of.index_select(0, position))
        key = ((encoding.row[entries] - first) * width - first).index_select(0, owner)
        key += row_of.index_select(0, position)
        shared = least.new_zeros((last - first) * width).scatter_add_(0, key, least)
        near = torch.nonzero(shared > least_shared)[:, 0]
        shared = shared.index_select(0, near)
        distance = (1 - shared / (2 - shared)).clamp_(min=0)
        near, distance = near[distance <= eps], distance[distance <= eps]
        found.append((near // width + first, near % width + first, distance))
    return _symmetric(*(torch.cat(part).cpu().numpy() for part in zip(*found)), n)


def _row_blocks(pairs):
    """Consecutive rows (first, last) with few pairs and a small dense buffer; pairs: (N,) those up to each row."""
    n, first = len(pairs), 0
    while first < n:
        before = pairs[first - 1] if first else 0
        last = min(int(np.searchsorted(pairs, before + PIECE_ELEMENTS, side="right")),
                   first + 2 * PIECE_ELEMENTS // (n - first))
        last = min(max(last, first + 1), n)
        yield first, last
        first = last


def _symmetric(row, column, distance, n):
    """The upper triangle mirrored, with a diagonal of stored zeros."""
    diagonal = np.arange(n)
    return sparse.csr_matrix(
        (np.concatenate([distance, distance, np.zeros(n, distance.dtype)]),
         (np.concatenate([row, column, diagonal]), np.concatenate([column, row, diagonal]))), shape=(n, n))
