"""The prompt stage: learn one prompt per pseudo label from projections that do not change."""
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from loss.image_text import supervised_contrast
from model.prompt import PromptLearner
from processor.features import embed_heads
from processor.finite import check_losses, check_weights
from utils.modality import Modality
from utils.optim import prompt_schedule
from utils.seeding import numpy_rng, torch_rng


@dataclass(frozen=True)
class PromptSettings:
    """The numbers of the stage; the defaults are those released for SYSU-MM01."""

    epochs: int = 60
    batch_size: int = 128
    lr: float = 3.5e-4
    lr_min: float = 1e-6
    warmup_lr: float = 1e-5
    warmup_epochs: int = 5
    weight_decay: float = 1e-4
    temperature: float = 1.0
    precision: str = "fp32"
    embed_batch_size: int = 64
    seed: int = 1


@dataclass
class PromptReport:
    """What happened in an epoch."""

    epoch: int
    loss: float      # mean over the batches
    lr: float
    seconds: float


class PromptStage:
    """The training loop of the prompts; nothing else learns.

    Args:
        model: the `CCLNet` before fine-tuning; text: `TextTower`; banks: Modality -> `ImageBank`;
        labels: Modality -> (N,) int64 pseudo labels, images of label -1 are left out; settings: `PromptSettings`.
    """

    def __init__(self, model, text, banks, labels, settings):
        self.model, self.text, self.banks, self.labels, self.settings = model, text, banks, labels, settings
        device = text.positional_embedding.device
        self.prompts = {m: PromptLearner(int(labels[m].max()) + 1, m, text,
                                         torch_rng(settings.seed, "prompts", m.value)).to(device) for m in Modality}
        self.optimizer = torch.optim.Adam([p for m in Modality for p in self.prompts[m].parameters()],
                                          lr=settings.lr, weight_decay=settings.weight_decay)
        self.schedule = prompt_schedule(self.optimizer, settings.epochs, settings.lr_min, settings.warmup_lr,
                                        settings.warmup_epochs)     # before any state is loaded: it reads the lr
        self.epoch = 1              # the epoch that comes next
        self.features = None        # Modality -> (N, D) of all images, once epochs were trained: the next stage's first

    def epochs(self, after_step=lambda: None):
        """Train all epochs that are left; yields a `PromptReport` after each. `after_step()` runs after iterations.

        Raises: NonFinite: a projection, the loss or a prompt is not finite.
        """
        s = self.settings
        if self.epoch > s.epochs:
            return
        kept = {m: np.flatnonzero(self.labels[m] >= 0) for m in Modality}
        embedded = {m: embed_heads(self.model, self.banks[m], m, ("projection", "feature"),
                                   batch_size=s.embed_batch_size, mode=s.precision) for m in Modality}
        self.features = {m: embedded[m]["feature"] for m in Modality}
        images = {m: embedded[m]["projection"][kept[m]] for m in Modality}
        labels = {m: torch.from_numpy(self.labels[m][kept[m]]).to(images[m].device) for m in Modality}
        while self.epoch <= s.epochs:
            started = time.perf_counter()
            self.schedule.step(self.epoch)
            batches = paired_batches({m: len(kept[m]) for m in Modality}, s.batch_size,
                                     numpy_rng(s.seed, "prompt batches", self.epoch))
            total = 0
            for iteration, batch in enumerate(tqdm(batches, desc=f"prompt epoch {self.epoch}", leave=False,
                                                   disable=None, unit="batch"), start=1):
                positions = {m: kept[m][batch[m].numpy()] for m in Modality}
                total += self._step({m: images[m][batch[m]] for m in Modality},
                                    {m: labels[m][batch[m]] for m in Modality}, positions, iteration)
                after_step()
            for m in Modality:
                check_weights(self.prompts[m].state_dict(), self.banks, positions, epoch=self.epoch)
            report = PromptReport(self.epoch, float(total) / len(batches), self.optimizer.param_groups[0]["lr"],
                                  time.perf_counter() - started)
            self.epoch += 1
            yield report

    def _step(self, images, labels, positions, iteration):
        loss = prompt_loss(self.text, self.prompts, images, labels, self.settings.temperature)
        check_losses({"prompt loss": loss}, images, self.banks, positions, epoch=self.epoch, iteration=iteration)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state_dict(self):
        """All that the epochs left depend on, beside data and settings."""
        return {"epoch": self.epoch, "optimizer": self.optimizer.state_dict(),
                "prompts": {m.value: self.prompts[m].state_dict() for m in Modality}}

    def load_state_dict(self, state):
        """Go on after the last epoch that the stage which gave `state` had finished."""
        self.epoch = state["epoch"]
        self.optimizer.load_state_dict(state["optimizer"])
        for m in Modality:
            self.prompts[m].load_state_dict(state["prompts"][m.value])


def paired_batches(sizes, batch_size, rng):
    """Batches of an epoch: every image of the larger modality once, the other topped up with random repeats.

    Args: sizes: Modality -> number of images. Returns: list of Modality -> (b,) positions, b <= batch_size, none empty.
    """
    longest = max(sizes.values())
    order = {m: torch.from_numpy(np.concatenate([rng.permutation(n), rng.integers(0, n, longest - n)]))
             for m, n in sizes.items()}
    return [{m: order[m][start:start + batch_size] for m in sizes} for start in range(0, longest, batch_size)]


def prompt_loss(text, prompts, images, labels, temperature=1.0):
    """Sum over both modalities of the supervised contrast image -> text and text -> image.

    The text of a label that repeats in the batch is computed once.

    Args (all Modality -> ...): prompts: `PromptLearner`; images: (B, E) projections; labels: (B,).
    """
    loss = 0
    for m in Modality:
        distinct, which = torch.unique(labels[m], return_inverse=True)
        texts = text(prompts[m](distinct))[which]
        loss = loss + supervised_contrast(images[m], labels[m], texts, labels[m], temperature)
        loss = loss + supervised_contrast(texts, labels[m], images[m], labels[m], temperature)
    return loss


@torch.no_grad()
def text_features(text, prompts):
    """Text features of all clusters: Modality -> (K, E)."""
    return {m: text(prompts[m]()) for m in Modality}
