"""The only loop that embeds images."""
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange

from data.augment import normalise
from model.batch_norm import folded
from utils.distributed import ALONE
from utils.finite import NonFinite
from utils.modality import Modality
from utils.runtime import autocast, gpu_rounding, is_compiled


def embed_all(model, images, method, settings, guidance=None, processes=ALONE):
    """Embed all training images of both modalities for an epoch's start: {head of method.needs: Modality -> (N, ·)}.

    Args: images: Modality -> `ImageBank`; method: `Method`; settings: of `processor.setup.train_settings`; guidance:
        `TextGuidance`, which gives the head "text"; processes: of `utils.distributed`. Raises: NonFinite: as `embed`.
    """
    needs = method.needs
    heads = [head for head in needs if head != "text"]
    embedded = {m: embed(model, bank, m, heads, batch_size=settings.embed_batch_size, precision=settings.precision,
                         mirrored=method.mirrored, processes=processes) for m, bank in images.items()}
    features = {head: {m: rows[head] for m, rows in embedded.items()} for head in heads}
    return {**features, "text": guidance.image_texts()} if "text" in needs else features


def embed(model, bank, modality, heads=("feature",), indices=None, *, batch_size, precision, mirrored=False,
          processes=ALONE):
    """Embed images in evaluation mode, without augmentation, in the order of indices.

    Each process embeds its share of the batches, so that the batches are the same for any number of processes.

    Args:
        model: `CCLNet`, left in the mode it was in; bank: `ImageBank` of the modality, a `Modality` or its word;
        heads: of "feature" (N, D), L2-normalised, "depths" (N, L, D), not normalised, and "projection" (N, E);
        indices: positions in the bank, all if None; batch_size: images at once; precision: of `utils.runtime`;
        mirrored: take the mean of each image's and its mirror image's, not normalised again, but a tower of several
        depths has its features normalised after the mean alone; processes: of `utils.distributed`.
    Returns:
        {head: float32 tensor on the model's device}.
    Raises:
        NonFinite: an embedding is not finite.
    """
    modality, indices = Modality(modality), np.arange(len(bank)) if indices is None else np.asarray(indices)
    was_training, own, compiled = model.training, processes.share(len(indices), batch_size), is_compiled(model)
    model.eval()
    encoder = folded(model) if bank.device.type == "cuda" and not compiled else model
    # A process without a share embeds one image in vain, for its rows' length.
    mine = indices[own] if own.stop > own.start else indices[:1]
    rows = {head: [] for head in heads}
    with torch.inference_mode(), gpu_rounding(precision):
        for start in trange(0, len(mine), batch_size, desc=f"embedding {modality.value}", unit="batch", leave=False,
                            disable=processes.hides_bars):
            chosen = mine[start:start + batch_size]
            # A compiled model keeps to one batch size: the last batch is filled up with repeats.
            images = normalise(bank.batch(np.resize(chosen, batch_size) if compiled else chosen), bank.normalisation)
            with autocast(precision, bank.device):
                embedded = _encode(encoder, images, modality, heads, mirrored)
            for head in heads:
                rows[head].append(embedded[head][:len(chosen)])
    model.train(was_training)
    # Ordinary tensors, for autograd.
    embedded = {head: processes.gather(torch.cat(batches)[:own.stop - own.start], len(indices), batch_size)
                for head, batches in rows.items()}
    for head, found in embedded.items():
        broken = (~torch.isfinite(found.flatten(1)).all(dim=1)).nonzero()[:, 0]
        if len(broken):
            raise NonFinite(f"the {head} of {len(broken)} {modality.value} image{'s' if len(broken) > 1 else ''}",
                            bank.names(indices[broken.cpu().numpy()]))
    return embedded


def _encode(model, images, modality, heads, mirrored):
    """Embed a batch: {head: float32 rows}. Args: as `embed`."""
    raw = mirrored and model.tower.depths > 1
    asked = tuple(dict.fromkeys("depths" if raw and head == "feature" else head for head in heads))
    views = [model.encode(view, modality, asked) for view in ((images, images.flip(3)) if mirrored else (images,))]
    rows = {head: sum(view[head].float() for view in views) / len(views) for head in asked}
    if raw and "feature" in heads:
        rows["feature"] = F.normalize(rows["depths"].flatten(1), dim=1)
    return rows
