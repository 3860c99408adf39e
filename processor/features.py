"""The only loop that embeds images."""
import numpy as np
import torch
from tqdm import tqdm

from data.augment import normalise
from processor.finite import NonFinite
from utils.runtime import precision


def embed(model, bank, modality, head="feature", indices=None, batch_size=64, mode="fp32"):
    """One head of `embed_heads`: a tensor."""
    return embed_heads(model, bank, modality, (head,), indices, batch_size, mode)[head]


def embed_heads(model, bank, modality, heads, indices=None, batch_size=64, mode="fp32"):
    """Features and projections of images in evaluation mode, without augmentation, in the order of indices.

    Args:
        model: `CCLNet`, left in the mode it was in; bank: `ImageBank` of the modality; heads: of them "feature" (N, D),
        L2-normalised, and "projection" (N, E); indices: positions in the bank, all if None;
        mode: of `utils.runtime.precision`.
    Returns:
        head -> float32 tensor on the model's device.
    Raises:
        NonFinite: an embedding is not finite.
    """
    indices = np.arange(len(bank)) if indices is None else np.asarray(indices)
    was_training = model.training
    model.eval()
    parts = {head: [] for head in heads}
    for start in tqdm(range(0, len(indices), batch_size), desc=f"embedding {modality.value}", unit="batch",
                      leave=False, disable=None):
        with torch.inference_mode(), precision(mode, bank.device):
            feature_map = model.feature_map(normalise(bank.batch(indices[start:start + batch_size])), modality)
            for head in heads:
                parts[head].append(getattr(model, head)(feature_map))
    model.train(was_training)
    embedded = {head: torch.cat(part) for head, part in parts.items()}      # ordinary tensors, which autograd may keep
    for head, rows in embedded.items():
        broken = (~torch.isfinite(rows).all(dim=1)).nonzero()[:, 0]
        if len(broken):
            raise NonFinite(f"the {head} of {len(broken)} {modality.value} image{'s' if len(broken) > 1 else ''}",
                            {modality: (bank, indices[broken.cpu().numpy()])})
    return embedded
