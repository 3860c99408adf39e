"""The only loop that embeds images."""
import numpy as np
import torch
from tqdm import tqdm

from data.augment import normalise
from processor.finite import NonFinite


def embed(model, bank, modality, head="feature", indices=None, batch_size=64):
    """Features or projections of images in evaluation mode, without augmentation, in the order of indices.

    Args:
        model: `CCLNet`, left in the mode it was in; bank: `ImageBank` of the modality; head: "feature" (N, D),
        L2-normalised, or "projection" (N, E); indices: positions in the bank, all if None.
    Returns:
        float32 tensor on the model's device.
    Raises:
        NonFinite: an embedding is not finite.
    """
    indices = np.arange(len(bank)) if indices is None else np.asarray(indices)
    was_training = model.training
    model.eval()
    parts = []
    for start in tqdm(range(0, len(indices), batch_size), desc=f"embedding {modality.value}", unit="batch",
                      leave=False, disable=None):
        with torch.inference_mode():
            images = normalise(bank.batch(indices[start:start + batch_size]))
            parts.append(getattr(model, head)(model.feature_map(images, modality)))
    model.train(was_training)
    embedded = torch.cat(parts)      # an ordinary tensor, which autograd may keep
    broken = (~torch.isfinite(embedded).all(dim=1)).nonzero()[:, 0]
    if len(broken):
        raise NonFinite(f"the {head} of {len(broken)} {modality.value} image{'s' if len(broken) > 1 else ''}",
                        {modality: (bank, indices[broken.cpu().numpy()])})
    return embedded
