"""Pseudo labels from features: k-reciprocal Jaccard distance and DBSCAN, without an N x N matrix.

The distance is that of Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding"
(CVPR 2017), as the clustering methods of the field use it. Everything up to DBSCAN is torch on the device
of the features: neighbours are (N, k1), the encoding V and the distances <= eps are sparse.

    neighbours = k_nearest(x, k1)                     # exact, FAISS or torch
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

try:
    import faiss
except ImportError:  # the torch search below takes its place
    faiss = None

# Elements of the largest temporary tensor; bounds the memory above the features to some hundred MB.
CHUNK_ELEMENTS = 1 << 23
PAIR_ELEMENTS = 1 << 20     # the same where memory is read at random: small enough for the cache


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


def cluster(features, k1, k2, eps, min_samples):
    """DBSCAN on the k-reciprocal Jaccard distance of features.

    Args:
        features: (N, D) float32 array or tensor; rows are L2-normalised here if they are not yet.
        k1: neighbours that count as near; k2: neighbours whose encodings are averaged (1: none are).
        eps: largest Jaccard distance of two neighbours, in [0, 1]; min_samples: neighbours (itself
            included) that make a core point.
    Returns:
        (N,) int64 array of labels from 0 on; -1 marks outliers.
    Raises:
        ValueError: features are not (N, D) or not finite.
    """
    features = torch.as_tensor(features)
    if features.ndim != 2:
        raise ValueError(f"features have shape {tuple(features.shape)}; expected (N, D)")
    if len(features) == 0:
        return np.empty(0, dtype=np.int64)
    if not torch.isfinite(features).all():
        raise ValueError("features hold NaN or Inf; clustering needs finite values")
    distances = jaccard_distances(features, k1, k2, eps)
    labels = DBSCAN(eps=max(eps, 1e-12), min_samples=min_samples, metric="precomputed").fit_predict(distances)
    return labels.astype(np.int64)


@torch.no_grad()
def jaccard_distances(features, k1, k2, eps):
    """Jaccard distances <= eps as a scipy CSR matrix (N, N); exact zeros (the diagonal) are stored."""
    features = F.normalize(features.float(), dim=1)
    neighbours = k_nearest(features, k1)
    encoding = reciprocal_encoding(features, neighbours, k1)
    encoding = query_expansion(encoding, neighbours.index[:, :k2])
    return jaccard_graph(encoding, eps)


def k_nearest(features, k):
    """The k largest inner products of each row of features (N, D) with all rows: `Neighbours`."""
    k = min(k, len(features))
    if faiss is not None and (features.device.type == "cpu" or faiss.get_num_gpus() > 0):
        return _k_nearest_faiss(features, k)
    return _k_nearest_torch(features, k)


def _k_nearest_faiss(features, k):
    x = features.cpu().numpy()
    index = faiss.IndexFlatIP(x.shape[1])
    if features.device.type == "cuda":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), features.device.index or 0, index)
    index.add(x)
    similarity, neighbour = index.search(x, k)
    return Neighbours(torch.from_numpy(neighbour).to(features.device),
                      torch.from_numpy(similarity).to(features.device))


def _k_nearest_torch(features, k):
    rows = max(1, CHUNK_ELEMENTS * 4 // len(features))
    parts = [torch.topk(block @ features.T, k, dim=1) for block in features.split(rows)]
    return Neighbours(torch.cat([p.indices for p in parts]), torch.cat([p.values for p in parts]))


def _reciprocal(index, k):
    """Mark which of the first k neighbours of each row have that row among their own first k: (N, k) bool."""
    near = index[:, :k]
    rows = max(1, CHUNK_ELEMENTS // near.shape[1] ** 2)
    own = torch.arange(len(near), device=near.device)
    return torch.cat([(near[part] == i[:, None, None]).any(2)
                      for part, i in zip(near.split(rows), own.split(rows))])


def reciprocal_encoding(features, neighbours, k1):
    """The encoding V: softmax of -(2 - 2 cos) over each row's expanded k-reciprocal neighbours.

    A row's k1-reciprocal neighbours are joined by the half-size reciprocal set of each of them if more than
    2/3 of that set is reciprocal to the row already. As in the released code, the half-size set reads
    round(k1 / 2) + 1 columns, the row itself being the first.

    Args:
        features: (N, D), L2-normalised; neighbours: the first k1 of each row.
    Returns:
        `SparseRows` (N, N) whose rows sum to 1.
    """
    index, similarity = neighbours
    n, k = index.shape
    half = min(int(np.around(k1 / 2)) + 1, k)
    is_near, is_half = _reciprocal(index, k), _reciprocal(index, half)
    # Absent members are marked -1 and -2, which never equal one another.
    near = torch.where(is_near, index, -1).int()
    halves = torch.where(is_half, index[:, :half], -2).int()
    half_size = is_half.sum(1)

    added = []
    for start in range(0, n, max(1, CHUNK_ELEMENTS // (k * k * half))):
        part = slice(start, start + max(1, CHUNK_ELEMENTS // (k * k * half)))
        candidates = halves[index[part]]                                           # (b, k, half)
        inside = (candidates[..., None] == near[part][:, None, None, :]).any(3)    # (b, k, half)
        enough = inside.sum(2) * 3 > half_size[index[part]] * 2
        new = (enough & is_near[part])[..., None] & ~inside & (candidates >= 0)
        row = torch.nonzero(new)[:, 0] + start
        added.append(row * n + candidates[new])
    key = torch.unique(torch.cat(added))
    row, column = key // n, key % n
    cosine = _row_products(features, row, column)

    own, slot = torch.nonzero(is_near, as_tuple=True)
    key = torch.cat([own * n + index[own, slot], key])
    cosine = torch.cat([similarity[own, slot], cosine])
    # A row that is nobody's reciprocal neighbour (many exact duplicates) encodes itself.
    alone = torch.nonzero(~is_near.any(1))[:, 0]
    key, cosine = torch.cat([key, alone * (n + 1)]), torch.cat([cosine, cosine.new_ones(len(alone))])
    order = torch.argsort(key)
    return _softmax_rows(_sparse_rows(key[order], cosine[order], n))


def _row_products(features, row, column):
    """Inner products of features[row] with features[column]: (M,)."""
    size = max(1, CHUNK_ELEMENTS // features.shape[1])
    parts = [(features[r] * features[c]).sum(1) for r, c in zip(row.split(size), column.split(size))]
    return torch.cat(parts) if parts else features.new_empty(0)


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
    return cosine._replace(value=weight / total[cosine.row])


def _ragged(start, count):
    """Positions start[e] .. start[e] + count[e] - 1 for all e in turn, and the e of each."""
    owner = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    first = torch.cumsum(count, 0) - count
    return torch.arange(len(owner), device=count.device) + (start - first)[owner], owner


def query_expansion(encoding, near):
    """Mean of V over the rows near (N, k2) of each row: `SparseRows`; k2 = 1 changes nothing."""
    n, k2 = near.shape
    if k2 <= 1:
        return encoding
    size = encoding.start.diff()
    rows = max(1, int(CHUNK_ELEMENTS / max(1.0, size.float().mean().item() * k2)))
    keys, values = [], []
    for start in range(0, n, rows):
        block = near[start:start + rows]
        position, owner = _ragged(encoding.start[block.flatten()], size[block.flatten()])
        key, where = torch.unique((owner // k2 + start) * n + encoding.column[position], return_inverse=True)
        values.append(torch.zeros(len(key), device=key.device).index_add_(0, where, encoding.value[position]))
        keys.append(key)
    return _sparse_rows(torch.cat(keys), torch.cat(values) / k2, n)


def jaccard_graph(encoding, eps):
    """Distances 1 - s / (2 - s) <= eps, s = sum_j min(V_ij, V_kj), as a scipy CSR matrix (N, N).

    Only rows that share a column meet: each entry (i, j) is paired with the later entries of column j, and a
    block of rows i sums its minima in a dense (block, N) buffer.
    """
    n = len(encoding.start) - 1
    by_column = torch.argsort(encoding.column, stable=True)      # columns ascend, rows ascend within
    row_of, value_of = encoding.row[by_column], encoding.value[by_column]
    column_end = torch.cumsum(torch.bincount(encoding.column, minlength=n), 0)
    place = torch.empty_like(by_column)
    place[by_column] = torch.arange(len(by_column), device=by_column.device)
    count = column_end[encoding.column] - place - 1              # later entries of the column

    work = torch.zeros(n + 1, dtype=torch.int64)
    work[1:] = torch.cumsum(count, 0)[encoding.start[1:] - 1].cpu()
    rows, columns, distances = [], [], []
    first = 0
    while first < n:
        last = int(torch.searchsorted(work, work[first] + PAIR_ELEMENTS, right=True)) - 1
        last = min(max(last, first + 1), first + max(1, PAIR_ELEMENTS // n), n)
        entries = slice(int(encoding.start[first]), int(encoding.start[last]))
        position, owner = _ragged(place[entries] + 1, count[entries])
        least = torch.minimum(encoding.value[entries][owner], value_of[position])
        key = (encoding.row[entries] - first)[owner] * n + row_of[position]
        shared = torch.zeros((last - first) * n, device=key.device).index_add_(0, key, least).view(-1, n)
        distance = 1 - shared / (2 - shared)
        i, k = torch.nonzero((distance <= eps) & (shared > 0), as_tuple=True)
        rows.append((i + first).cpu())
        columns.append(k.cpu())
        distances.append(distance[i, k].clamp_(min=0).cpu())
        first = last
    return _symmetric(torch.cat(rows).numpy(), torch.cat(columns).numpy(), torch.cat(distances).numpy(), n)


def _symmetric(row, column, distance, n):
    """The upper triangle mirrored, with a diagonal of stored zeros."""
    diagonal = np.arange(n)
    return sparse.csr_matrix(
        (np.concatenate([distance, distance, np.zeros(n, distance.dtype)]),
         (np.concatenate([row, column, diagonal]), np.concatenate([column, row, diagonal]))), shape=(n, n))
