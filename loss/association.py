"""Which clusters of the two modalities belong together: functions from prototypes to links.

An association takes the prototypes of both modalities, rows L2-normalised, and returns `Links`. A new one is a
function here and a name in ASSOCIATIONS of loss/cross_memory.py.
"""
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment


class Links(NamedTuple):
    """The partner of every cluster in the other modality, -1 for none; not always one-to-one or mutual."""

    rgb_to_ir: np.ndarray       # (K_rgb,) int64
    ir_to_rgb: np.ndarray       # (K_ir,) int64

    def pairs(self):
        """List the linked clusters seen from the visible side: RGB clusters (M,), ascending, their IR ones (M,)."""
        rgb = np.flatnonzero(self.rgb_to_ir >= 0)
        return rgb, self.rgb_to_ir[rgb]


def hungarian(rgb, ir):
    """Link clusters one-to-one so that the sum of inner products is largest; pairs below 0 stay without a link.

    CCLNet's association: scipy's solver of the assignment problem.

    Args: rgb: (K_rgb, D), ir: (K_ir, D) tensors. Returns: `Links`.
    """
    similarity = (rgb @ ir.T).cpu().numpy()
    similarity = np.nan_to_num(similarity)      # the solver raises on NaN, which a check of the losses reports better
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    kept = similarity[rows, columns] >= 0
    links = Links(np.full(len(rgb), -1), np.full(len(ir), -1))
    links.rgb_to_ir[rows[kept]] = columns[kept]
    links.ir_to_rgb[columns[kept]] = rows[kept]
    return links
