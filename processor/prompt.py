"""The prompt stage: learn one prompt per pseudo label from projections that do not change."""
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from data.batches import PromptBatches
from loss.image_text import supervised_contrast
from model.replay import Replayed
from processor.features import embed
from processor.optim import warmup_cosine_lr
from processor.run.epoch import end_prompt_epoch
from processor.run.state import PromptState
from utils.finite import RunningMeans
from utils.modality import Modality
from utils.runtime import to_device


@dataclass(frozen=True)
class PromptSettings:
    """The numbers of the stage; configs/settings.py explains them."""

    seed: int
    epochs: int
    batch_size: int             # pairs of a visible and an infrared image
    lr: float
    lr_min: float
    warmup_lr: float
    warmup_epochs: int
    weight_decay: float
    precision: str              # of the images' embedding
    embed_batch_size: int
    cuda_graphs: bool           # whether the texts' passes are replayed (model/replay.py)


def learn_prompts(model, text, images, labels, settings, run):
    """Train the epochs that are left of the prompts; nothing else learns.

    Several processes share the embedding of the images; then each takes all steps alike: the loss contrasts each image
    with every text of the batch, whose texts a share would have to compute too. The first process's prompts count.

    Args:
        model: the `CCLNet` before fine-tuning; text: `TextTower`; images: Modality -> `ImageBank`;
        labels: Modality -> (N,) int64 pseudo labels, images of label -1 are left out; settings: `PromptSettings`;
        run: `processor.run.folder.Run`.
    Returns: Modality -> `PromptLearner`.
    Raises: NonFinite: a projection, the loss or a prompt is not finite.
    """
    s, state = settings, run.restore("prompt", PromptState(text, labels, settings))
    projections = {m: embed(model, images[m], m, ("projection",), batch_size=s.embed_batch_size, precision=s.precision,
                            processes=run.processes)["projection"] for m in Modality} if state.epoch <= s.epochs else {}
    if s.cuda_graphs:
        text = Replayed(text)
    for epoch in run.epochs_left("prompt", state, s.epochs):
        batches, means = PromptBatches(images, labels, s, epoch), RunningMeans()
        for group in state.optimizer.param_groups:
            group["lr"] = warmup_cosine_lr(epoch, s.epochs, s.lr, s.lr_min, s.warmup_lr, s.warmup_epochs)
        for batch in tqdm(batches, f"prompt epoch {epoch}", leave=False, disable=run.processes.hides_bars):
            means.add({"loss": prompt_step(text, state.prompts, state.optimizer, {
                m: projections[m][batch[m]] for m in Modality}, {m: labels[m][batch[m]] for m in Modality},
                s.batch_size if s.cuda_graphs else 0)})
        means.check(f"prompt epoch {epoch}", batches.names)
        end_prompt_epoch(epoch, state, s.epochs, means, run)
    for parameter in (p for m in Modality for p in state.prompts[m].parameters()):
        run.processes.same(parameter.detach())      # GPUs may differ in the last bits
    return state.prompts


def prompt_step(text, prompts, optimizer, projections, labels, texts_at_least=0):
    """Take one step of the optimiser on the prompts; return the loss, a scalar tensor. Args: as `prompt_loss`."""
    loss = prompt_loss(text, prompts, projections, labels, texts_at_least)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def prompt_loss(text, prompts, projections, labels, texts_at_least=0):
    """Sum the supervised contrast image -> text and text -> image over both modalities.

    The text of a label that repeats in the batch is computed once, those of both modalities together.

    Args:
        prompts: Modality -> `PromptLearner`; projections: Modality -> (B, E); labels: Modality -> (B,) int64 arrays;
        texts_at_least: of each modality, filled up with repeats that nothing depends on, for passes of one shape.
    """
    loss, rows, tokens = 0, {}, []
    for m in Modality:
        distinct, which = np.unique(labels[m], return_inverse=True)
        wanted = np.resize(distinct, max(texts_at_least, len(distinct)))
        *rows[m], wanted = (to_device(values, projections[m].device) for values in (labels[m], which, wanted))
        tokens.append(prompts[m](wanted))
    for m, texts in zip(Modality, text(torch.cat(tokens)).split([len(of) for of in tokens])):
        of_batch, which = rows[m]
        texts = texts[which]
        loss = loss + supervised_contrast(projections[m], of_batch, texts, of_batch)
        loss = loss + supervised_contrast(texts, of_batch, projections[m], of_batch)
    return loss


@torch.no_grad()
def text_features(text, prompts):
    """Compute the text features of all clusters: Modality -> (K, E)."""
    return {m: text(prompts[m]()) for m in Modality}
