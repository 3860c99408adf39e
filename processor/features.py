"""The only loop that embeds images."""
import numpy as np
import torch
from tqdm import tqdm

from data.augment import normalise
from utils.distributed import ALONE
from utils.finite import NonFinite
from utils.runtime import autocast, gpu_rounding


def embed(model, bank, modality, heads=("feature",), indices=None, *, batch_size, precision, mirrored=False,
          processes=ALONE):
    """Embed images in evaluation mode, without augmentation, in the order of indices.

    Each process embeds its share of the batches, so that the batches are the same for any number of processes.

    Args:
        model: `CCLNet`, left in the mode it was in; bank: `ImageBank` of the modality;
        heads: of "feature" (N, D), L2-normalised, and "projection" (N, E); indices: positions in the bank, all if
        None; precision: of `utils.runtime`; mirrored: take the mean of each image's and its mirror image's, not
        normalised again; processes: of `utils.distributed`.
    Returns:
        {head: float32 tensor on the model's device}.
    Raises:
        NonFinite: an embedding is not finite.
    """
    indices = np.arange(len(bank)) if indices is None else np.asarray(indices)
    was_training, own = model.training, processes.share(len(indices), batch_size)
    model.eval()
    rows = {head: [] for head in heads}
    with torch.inference_mode(), gpu_rounding(precision):
        for start in tqdm(range(own.start, max(own.stop, own.start + 1), batch_size), unit="batch", leave=False,
                          desc=f"embedding {modality.value}", disable=processes.hides_bars):
            images = normalise(bank.batch(indices[start:start + batch_size]))
            views = (images, images.flip(3)) if mirrored else (images,)
            with autocast(precision, bank.device):
                embedded = [model.encode(view, modality, heads) for view in views]
            for head in heads:
                found = [view[head].float() for view in embedded]
                rows[head].append(sum(found) / len(found) if mirrored else found[0])
    model.train(was_training)
    # Ordinary tensors, for autograd. A process without a batch has embedded one in vain, for its rows' length.
    embedded = {head: processes.gather(torch.cat(batches)[:own.stop - own.start], len(indices), batch_size)
                for head, batches in rows.items()}
    for head, found in embedded.items():
        broken = (~torch.isfinite(found).all(dim=1)).nonzero()[:, 0]
        if len(broken):
            raise NonFinite(f"the {head} of {len(broken)} {modality.value} image{'s' if len(broken) > 1 else ''}",
                            bank.names(indices[broken.cpu().numpy()]))
    return embedded
