"""The prompt stage: learn one prompt per pseudo label from projections that do not change."""
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from loss.image_text import supervised_contrast
from model.prompt import PromptLearner
from processor.features import embed
from processor.optim import warmup_cosine_lr
from processor.run.epoch import on_host
from processor.run.events import memory_use
from tools.lib.cost import duration
from utils.finite import RunningMeans, check_weights
from utils.modality import Modality
from utils.runtime import to_device
from utils.seeding import numpy_rng, torch_rng


@dataclass(frozen=True)
class PromptSettings:
    """The numbers of the stage; configs/defaults.py explains them."""

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


def learn_prompts(model, text, images, labels, settings, run):
    """Train the epochs that are left of the prompts; nothing else learns.

    Several processes share the embedding of the images; then each takes all steps alike: the loss contrasts each image
    with every text of the batch, whose texts a share would have to compute too. The first process's prompts count.

    Args:
        model: the `CCLNet` before fine-tuning; text: `TextTower`; images: Modality -> `ImageBank`;
        labels: Modality -> (N,) int64 pseudo labels, images of label -1 are left out; settings: `PromptSettings`;
        run: `processor.run.folder.Run`.
    Returns: Modality -> `PromptLearner`.
    Raises: NonFinite: a projection, the loss or a prompt is not finite. Stopped: the run was asked to stop.
    """
    s, state = settings, run.restore("prompt", PromptState(text, labels, settings))
    if state.epoch > s.epochs:
        return state.prompts
    projections = {m: embed(model, images[m], m, ("projection",), batch_size=s.embed_batch_size,
                            precision=s.precision, processes=run.processes)["projection"] for m in Modality}
    for epoch in run.epochs_left("prompt", state, s.epochs):
        started, means = time.perf_counter(), RunningMeans()
        lr = warmup_cosine_lr(epoch, s.epochs, s.lr, s.lr_min, s.warmup_lr, s.warmup_epochs)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        batches = PromptBatches(images, labels, s, epoch)
        for step in tqdm(range(len(batches)), desc=f"prompt epoch {epoch}", leave=False, unit="batch",
                         disable=run.processes.hides_bars):
            batch = batches[step]
            means.add({"loss": prompt_step(text, state.prompts, state.optimizer, {
                m: projections[m][batch[m]] for m in Modality}, {m: labels[m][batch[m]] for m in Modality})})
        means.check(f"epoch {epoch}", batches.names)
        loss, seconds = means.means()["loss"], time.perf_counter() - started
        run.log.info(f"prompt {epoch}/{s.epochs} | loss {loss:.4f} | lr {lr:.2e} | {seconds:.1f} s")
        run.record("prompt", epoch=epoch, loss=loss, lr=lr, seconds=seconds,
                   **memory_use(text.positional_embedding.device))
        state.epoch += 1
        run.save_state("prompt", state.state_dict())
        if epoch == 1:
            run.log.info(f"estimate of prompt: {duration(s.epochs * (time.perf_counter() - started))} in all; that of "
                         "the fine-tune follows after its first epoch")
    for parameter in (p for m in Modality for p in state.prompts[m].parameters()):
        run.processes.same(parameter.detach())      # GPUs may differ in the last bits
    return state.prompts


def prompt_step(text, prompts, optimizer, projections, labels):
    """Take one step of the optimiser on the prompts; return the loss, a scalar tensor.

    Args (all Modality -> ...): prompts: `PromptLearner`; projections: (B, E); labels: (B,) int64 arrays.
    """
    loss = prompt_loss(text, prompts, projections, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def prompt_loss(text, prompts, projections, labels):
    """Sum the supervised contrast image -> text and text -> image over both modalities.

    The text of a label that repeats in the batch is computed once.

    Args (all Modality -> ...): prompts: `PromptLearner`; projections: (B, E); labels: (B,) int64 arrays.
    """
    loss = 0
    for m in Modality:
        of_batch, distinct, which = (to_device(values, projections[m].device) for values in (
            labels[m], *np.unique(labels[m], return_inverse=True)))
        texts = text(prompts[m](distinct))[which]
        loss = loss + supervised_contrast(projections[m], of_batch, texts, of_batch)
        loss = loss + supervised_contrast(texts, of_batch, projections[m], of_batch)
    return loss


class PromptState:
    """What the prompt stage has reached: prompts, optimiser, the next epoch. Args: as `learn_prompts`."""

    def __init__(self, text, labels, settings):
        s, device = settings, text.positional_embedding.device
        self.prompts = {m: PromptLearner(int(labels[m].max()) + 1, m, text, torch_rng(s.seed, "prompts", m.value)
                                         ).to(device) for m in Modality}
        self.optimizer = torch.optim.Adam([p for m in Modality for p in self.prompts[m].parameters()], lr=s.lr,
                                          weight_decay=s.weight_decay)
        self.epoch = 1

    def state_dict(self):
        """Return all that the epochs left depend on, beside data and settings. Raises: NonFinite."""
        for m in Modality:
            check_weights(self.prompts[m].state_dict(), f"prompt epoch {self.epoch - 1}")
        return on_host({"epoch": self.epoch, "optimizer": self.optimizer.state_dict(),
                        "prompts": {m.value: self.prompts[m].state_dict() for m in Modality}})

    def load_state_dict(self, state):
        """Take over a saved state."""
        self.epoch = state["epoch"]
        self.optimizer.load_state_dict(state["optimizer"])
        for m in Modality:
            self.prompts[m].load_state_dict(state["prompts"][m.value])


class PromptBatches:
    """Batches of an epoch: every labelled image of the larger modality once, the other topped up with random repeats.

    Args: images: Modality -> `ImageBank`; labels: Modality -> (N,); settings: `PromptSettings`; epoch: from 1.
    """

    def __init__(self, images, labels, settings, epoch):
        self.images, self.size = images, settings.batch_size
        kept = {m: np.flatnonzero(labels[m] >= 0) for m in Modality}
        rng, longest = numpy_rng(settings.seed, "prompt batches", epoch), max(map(len, kept.values()))
        self.order = {m: positions[np.concatenate([rng.permutation(len(positions)), rng.integers(
            0, len(positions), longest - len(positions))])] for m, positions in kept.items()}

    def __len__(self):
        return -(-len(self.order[Modality.RGB]) // self.size)

    def __getitem__(self, step):
        """Return the positions in the training set of a step, counted from 0: Modality -> (b,), b <= batch size."""
        return {m: order[step * self.size:(step + 1) * self.size] for m, order in self.order.items()}

    def names(self, step):
        """Return the names of the images in a step's batch, for messages."""
        return [name for m in Modality for name in self.images[m].names(np.unique(self[step][m]))]


@torch.no_grad()
def text_features(text, prompts):
    """Compute the text features of all clusters: Modality -> (K, E)."""
    return {m: text(prompts[m]()) for m in Modality}
