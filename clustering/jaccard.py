"""The k-reciprocal Jaccard distance of features, without an N x N matrix.

The distance is that of Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding"
(CVPR 2017), as the clustering methods of the field use it. Everything is torch on the device of the features:
neighbours are (N, k1), the encoding V and the distances <= eps are sparse.

    V = reciprocal_encoding(x, neighbours, k1)        # sparse (N, N), rows sum to 1
    V = query_expansion(V, neighbours.index[:, :k2])  # mean of V over the first k2 neighbours
    distances = jaccard_graph(V, eps)                 # sparse (N, N), entries <= eps
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse

from utils.runtime import gpu_rounding

# Elements of temporary tensors that are read at random: on a CPU few enough for the cache; on a GPU many small pieces
# would take longer to launch than to compute.
PIECE_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}


class SparseRows(NamedTuple):
    """A sparse (N, N) matrix in CSR order: entry e lies at (row[e], column[e]); rows ascend, then columns."""

    row: torch.Tensor      # (M,) int64
    column: torch.Tensor   # (M,) int64
    value: torch.Tensor    # (M,) float32
    start: torch.Tensor    # (N + 1,) int64, row i is start[i]:start[i + 1]


def distances_of(features, neighbours, k1, k2, eps):
    """Compute the Jaccard distances <= eps as a scipy CSR matrix (N, N); its zeros are stored.

    Two rows that share no neighbour are at distance 1, which is not stored even where eps is 1.

    Args: features: (N, D), L2-normalised; neighbours: the first k1 of each row.
    """
    with gpu_rounding("fp32"):
        encoding = reciprocal_encoding(features, neighbours, k1)
        encoding = query_expansion(encoding, neighbours.index[:, :k2])
        return jaccard_graph(encoding, eps)


def _reciprocal(index, k):
    """Mark which of the first k neighbours of each row have that row among their own first k: (N, k) bool."""
    near, own = index[:, :k], torch.arange(len(index), device=index.device)[:, None]
    return torch.isin(own * len(index) + near, near * len(index) + own)


def reciprocal_encoding(features, neighbours, k1):
    """Encode each row by V, the softmax of -(2 - 2 cos) over its expanded k-reciprocal neighbours.

    As in the released code, the half-size reciprocal set of a neighbour reads round(k1 / 2) + 1 columns, the row
    itself being the first. A row that is not among the neighbours of its own neighbours has no entry.

    Args:
        features: (N, D), L2-normalised; neighbours: the first k1 of each row.
    Returns:
        `SparseRows` (N, N) whose rows sum to 1, or to 0 where they have no entry.
    """
    index, similarity = neighbours
    n, k = index.shape
    is_near, is_half = _reciprocal(index, k), _reciprocal(index, min(int(np.around(k1 / 2)) + 1, k))
    own = torch.nonzero(is_near)[:, 0]
    near = index[is_near]
    added = _half_set_members(own, near, index[:, :is_half.shape[1]][is_half], is_half.sum(1))

    key = torch.cat([own * n + near, added])
    cosine = torch.cat([similarity[is_near], _row_products(features, added // n, added % n)])
    key, order = torch.sort(key)
    encoding = _sparse_rows(key, torch.exp(2 * cosine[order] - 2), n)      # exponents are at most 0: no overflow
    total = torch.zeros(n, device=key.device).index_add_(0, encoding.row, encoding.value)
    return encoding._replace(value=encoding.value / total[encoding.row])


def _half_set_members(own, near, half, half_size):
    """Find what the half-size sets of its neighbours add to each row's reciprocal neighbours.

    A set counts if more than 2/3 of it are reciprocal neighbours of the row already.

    Args: own, near: (M,) each row (ascending) and its reciprocal neighbours; half: the half-size sets of all rows one
        after the other; half_size: (N,) their lengths.
    Returns: ascending keys row * N + column, without repeats.
    """
    n = len(half_size)
    half_start = torch.cumsum(half_size, 0) - half_size
    rows = _rows_at_once(n, own)
    bounds = torch.searchsorted(own, torch.arange(0, n + rows, rows, device=own.device)).tolist()
    is_member = torch.zeros(rows * n, dtype=torch.bool, device=own.device)
    added = [own.new_empty(0)]
    for block, (first, last) in enumerate(zip(bounds, bounds[1:])):
        base, candidate = (own[first:last] - block * rows) * n, near[first:last]
        is_member[base + candidate] = True
        size = half_size[candidate]
        position, pair = _ragged(half_start[candidate], size)
        key = half[position].add_(base[pair])
        inside = is_member[key]
        overlap = torch.zeros_like(size).index_add_(0, pair, inside.long())
        new = (overlap * 3 > size * 2)[pair] & ~inside
        added.append(torch.unique(key[new]) + block * rows * n)
        is_member[base + candidate] = False
    return torch.cat(added)


def _row_products(features, row, column):
    """Compute the inner products (M,) of features[row] with features[column], a piece at a time."""
    size = _rows_at_once(features.shape[1], features)
    return torch.cat([(features[r] * features[c]).sum(1) for r, c in zip(row.split(size), column.split(size))])


def _rows_at_once(elements, tensor):
    """Return how many rows of so many elements make a piece on a tensor's device, at least one."""
    return max(1, int(PIECE_ELEMENTS[tensor.device.type] // max(1, elements)))


def _sparse_rows(key, value, n):
    """Build `SparseRows` from ascending keys row * n + column."""
    row = torch.div(key, n, rounding_mode="floor")
    start = torch.zeros(n + 1, dtype=torch.int64, device=key.device)
    torch.cumsum(torch.bincount(row, minlength=n), 0, out=start[1:])
    return SparseRows(row, key - row * n, value, start)


def _ragged(start, count):
    """List the positions start[e] .. start[e] + count[e] - 1 for all e in turn, and the e of each."""
    owner = torch.repeat_interleave(count)
    first = torch.cumsum(count, 0) - count
    return (start - first)[owner] + torch.arange(len(owner), device=count.device), owner


def query_expansion(encoding, near):
    """Average V over the rows near (N, k2) of each row: `SparseRows`; k2 = 1 changes nothing."""
    n, k2 = near.shape
    if k2 <= 1:
        return encoding
    size = encoding.start.diff()
    rows = _rows_at_once(size.float().mean().item() * k2, near)
    keys, values = [], []
    for start in range(0, n, rows):
        block = near[start:start + rows].flatten()
        position, owner = _ragged(encoding.start[block], size[block])
        key, order = torch.sort((owner // k2 + start) * n + encoding.column[position])
        key, where = torch.unique_consecutive(key, return_inverse=True)
        value = encoding.value[position[order]]
        values.append(torch.zeros(len(key), device=key.device).scatter_add_(0, where, value))
        keys.append(key)
    return _sparse_rows(torch.cat(keys), torch.cat(values) / k2, n)


def jaccard_graph(encoding, eps):
    """Compute the distances 1 - s / (2 - s) <= eps, s = sum_j min(V_ij, V_kj), as a scipy CSR matrix (N, N).

    Only rows that share a column meet: each entry (i, j) is paired with itself and the later entries (k, j) of its
    column, and a block of rows i sums its minima in a dense buffer over the rows k from the block's first on.
    """
    n = len(encoding.start) - 1
    by_column = torch.argsort(encoding.column, stable=True)      # columns ascend, rows ascend within
    row_of, value_of = encoding.row[by_column], encoding.value[by_column]
    own = torch.empty_like(by_column)                            # where an entry stands in that order
    own[by_column] = torch.arange(len(by_column), device=by_column.device)
    column_end = torch.cumsum(torch.bincount(encoding.column, minlength=n), 0)
    count = column_end[encoding.column] - own    # itself and the later entries of the column

    least_shared = max(0.0, 2 * (1 - eps) / (2 - eps) - 1e-5)    # a little less than distance eps needs
    pairs_before = F.pad(torch.cumsum(count, 0), (1, 0))[encoding.start].cpu().numpy()
    found = []
    for first, last in _row_blocks(pairs_before, PIECE_ELEMENTS[own.device.type]):
        width = n - first
        entries = slice(int(encoding.start[first]), int(encoding.start[last]))
        position, owner = _ragged(own[entries], count[entries])
        # index_select, not [...]: most of the time goes here, and on a CPU it takes half as long
        least = torch.minimum(encoding.value[entries].index_select(0, owner), value_of.index_select(0, position))
        key = ((encoding.row[entries] - first) * width - first).index_select(0, owner)
        key += row_of.index_select(0, position)
        shared = least.new_zeros((last - first) * width).scatter_add_(0, key, least)
        near = torch.nonzero(shared > least_shared)[:, 0]
        shared = shared[near]
        distance = (1 - shared / (2 - shared)).clamp_(min=0)
        near, distance = near[distance <= eps], distance[distance <= eps]
        found.append((near // width + first, near % width + first, distance))
    return _symmetric(*(torch.cat(part).cpu().numpy() for part in zip(*found)), n)


def _row_blocks(pairs_before, elements):
    """Yield consecutive rows (first, last), as many as fit: one, or few pairs and a small buffer of N - first columns.

    Args: pairs_before: (N + 1,), how many pairs the rows before each have; elements: of a piece.
    """
    n, first = len(pairs_before) - 1, 0
    while first < n:
        last = min(int(np.searchsorted(pairs_before, pairs_before[first] + elements, side="right")) - 1,
                   first + 2 * elements // (n - first))
        last = min(max(last, first + 1), n)
        yield first, last
        first = last


def _symmetric(row, column, distance, n):
    """Mirror an upper triangle with its diagonal."""
    above = row < column
    return sparse.csr_matrix(
        (np.concatenate([distance, distance[above]]),
         (np.concatenate([row, column[above]]), np.concatenate([column, row[above]]))), shape=(n, n))
