"""Re-ranking of a gallery with k-reciprocal encoding (Zhong et al., CVPR 2017), without an N x N matrix."""
import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse

from clustering.jaccard import query_expansion, reciprocal_encoding
from clustering.neighbours import k_nearest

K1, K2, SHARE = 20, 6, 0.3      # of the paper: neighbours, averaged encodings, share of the original distance
ROWS_AT_ONCE = 512


@torch.no_grad()
def rerank(query, gallery, k1=K1, k2=K2, share=SHARE):
    """Compute the distance (1 - share) * Jaccard + share * original of all queries and gallery images.

    The Jaccard distance compares k-reciprocal encodings over queries and gallery together. Original is the squared
    Euclidean distance of the normalised features, divided by the query's largest one.

    Args: query: (Q, D), gallery: (G, D) float32 tensors; k1, k2, share: as in the paper.
    Returns: (Q, G) float32 array.
    """
    features = F.normalize(torch.cat([query, gallery]).float(), dim=1)
    neighbours = k_nearest(features, k1 + 1)
    farthest = torch.cat([(2 - 2 * rows @ features.T).max(1).values for rows in features.split(ROWS_AT_ONCE)])
    encoding = reciprocal_encoding(features, neighbours, k1)        # rows of weights exp(-d), up to a factor
    weight = encoding.value ** (1 / farthest.clamp(min=1e-12)[encoding.row])        # exp(-d / farthest)
    total = torch.zeros_like(farthest).index_add_(0, encoding.row, weight)
    encoding = query_expansion(encoding._replace(value=weight / total[encoding.row]), neighbours.index[:, :k2])
    original = (2 - 2 * features[:len(query)] @ features[len(query):].T) / farthest[:len(query), None]
    return (1 - share) * _jaccard(encoding, len(query)) + share * original.clamp(min=0).cpu().numpy()


def _jaccard(encoding, queries):
    """Compute 1 - s / (2 - s), s = sum_j min(V_qj, V_gj), of the first rows with all others: (Q, G) float32."""
    n = len(encoding.start) - 1
    rows = sparse.csr_matrix(tuple(part.cpu().numpy() for part in (encoding.value, encoding.column, encoding.start)),
                             shape=(n, n))
    columns = rows[queries:].tocsc()
    shared = np.zeros((queries, n - queries), dtype=np.float32)
    for q in range(queries):
        own = slice(rows.indptr[q], rows.indptr[q + 1])
        near = columns[:, rows.indices[own]]
        least = np.minimum(near.data, np.repeat(rows.data[own], np.diff(near.indptr)))
        shared[q] = np.bincount(near.indices, least, minlength=n - queries)
    return 1 - shared / (2 - shared)
