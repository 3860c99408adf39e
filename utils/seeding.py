"""Random state that is always local, and named by what it is for.

A stage that draws from `numpy_rng(seed, "sampler", epoch)` needs no random state in its checkpoint:
the epoch's stream is found again from its name.
"""
import zlib

import numpy as np
import torch


def _words(names):
    return [zlib.crc32(str(name).encode()) for name in names]


def numpy_rng(seed, *names):
    """An independent numpy Generator for (seed, names)."""
    return np.random.default_rng(np.random.SeedSequence([seed, *_words(names)]))


def torch_rng(seed, *names):
    """An independent CPU torch Generator for (seed, names)."""
    state = np.random.SeedSequence([seed, *_words(names)]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
