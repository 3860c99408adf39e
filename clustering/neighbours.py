"""The nearest rows of each row, by FAISS or torch; both are exact."""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.distributed import ALONE
from utils.runtime import gpu_rounding

try:
    import faiss
    import faiss.contrib.torch_utils  # noqa: F401 - lets FAISS take tensors, those on a GPU without a way round the host
except ImportError:  # the torch search below takes its place
    faiss = None

BLOCK_ROWS = 1024           # rows of one matrix product of the search
SEARCH_UNIT = 4096          # rows of a process's search, FAISS's own blocks: the bits stay, but for a shorter rest


class Neighbours(NamedTuple):
    """The k nearest rows of each row, itself included, nearest first."""

    index: torch.Tensor       # (N, k) int64
    similarity: torch.Tensor  # (N, k) float32, inner products


def neighbours_of(features, k1, processes=ALONE):
    """L2-normalise features and find the neighbours of each row.

    Args: features: (N, D) tensor; k1: neighbours of a row; processes: of `utils.distributed`; each searches for its
        share of the rows, and all get all neighbours.
    Returns: the normalised features, (N, D) float32; `Neighbours`.
    """
    with gpu_rounding("fp32"):
        features = F.normalize(features.float(), dim=1)
        found = k_nearest(features, k1, processes.share(len(features), SEARCH_UNIT))
    return features, Neighbours(*(processes.gather(part, len(features), SEARCH_UNIT) for part in found))


def k_nearest(features, k, rows=slice(None)):
    """Find the k largest inner products of some rows with all rows.

    FAISS searches where it is installed, on the GPU where FAISS and the features are, else torch.

    Args: features: (N, D), L2-normalised; k: at most N count; rows: a slice, whose neighbours are wanted.
    Returns: `Neighbours` of these rows.
    """
    k, kind = min(k, len(features)), features.device.type
    if faiss is None or not (kind == "cpu" or (kind == "cuda" and faiss.get_num_gpus())):
        return k_nearest_by_torch(features, k, rows)
    index = faiss.IndexFlatIP(features.shape[1])
    if kind == "cuda":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), features.device.index or 0, index)
    index.add(features.contiguous())
    similarity, neighbour = index.search(features[rows].contiguous(), k)
    return Neighbours(neighbour, similarity)


def k_nearest_by_torch(features, k, rows=slice(None)):
    """Find the neighbours with one matrix product per block of rows. Args: as `k_nearest`, k at most N."""
    best = [torch.topk(block @ features.T, k, dim=1) for block in features[rows].split(BLOCK_ROWS)]
    similarity, index = (torch.cat(part) for part in zip(*best))
    return Neighbours(index, similarity)
