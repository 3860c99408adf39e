"""The contrastive stage, one loop for train_prepare.py and for the fine-tuning of train_clip.py.

Every epoch: embed all training images, cluster each modality, start a memory from the centroids, and train on
P x K batches. With a `TextGuidance` the images are also drawn to the texts of their clusters.
"""
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from data.augment import Augmentation, augment
from data.sampler import cluster_batches, iterations_per_epoch
from loss.cluster_memory import ClusterMemory, swap
from loss.image_text import image_to_text
from processor.pseudo_labels import ClusterSettings, make_pseudo_labels
from utils.modality import Modality
from utils.optim import image_optimizer, set_lr, warmup_step_factor
from utils.runtime import precision
from utils.seeding import numpy_rng


@dataclass(frozen=True)
class ContrastSettings:
    """The numbers of the stage; the defaults are those released for SYSU-MM01."""

    epochs: int = 120
    cluster: ClusterSettings = ClusterSettings()
    temperature: float = 0.05
    momentum: float = 0.1
    swap_epoch: int = 61
    swap_scale: float = 0.1
    swap_order: str = "released"
    clusters_per_batch: int = 4
    instances: int = 16
    lr: float = 3.5e-4
    bias_lr_factor: float = 2.0
    weight_decay: float = 5e-4
    warmup_epochs: int = 10
    warmup_factor: float = 0.01
    lr_steps: tuple = (30, 50)
    lr_gamma: float = 0.1
    augmentation: dict = field(default_factory=lambda: {m: Augmentation() for m in Modality})
    precision: str = "fp32"
    embed_batch_size: int = 64
    seed: int = 1


class TextGuidance:
    """Image-to-text loss against the texts of train_prepare's clusters.

    Args:
        text_features: Modality -> (K, E); labels: Modality -> (N,) int64 pseudo labels of train_prepare, -1 is
        ignored; smoothing: of the labels.
    """

    def __init__(self, text_features, labels, smoothing=0.1):
        self.text_features = text_features
        self.labels = labels
        self.smoothing = smoothing

    def loss(self, projections, modality, positions):
        """Loss of the images at positions (B,) of the training set with projections (B, E)."""
        labels = torch.from_numpy(self.labels[modality][positions]).to(projections.device)
        return image_to_text(projections, self.text_features[modality], labels, self.smoothing)


@dataclass
class EpochReport:
    """What happened in an epoch."""

    epoch: int
    pseudo_labels: dict         # Modality -> PseudoLabels, made at the start of the epoch
    losses: dict                # name -> mean over the iterations
    lr: float
    iterations: int
    images_per_second: float    # of the training iterations alone
    seconds: float              # all of the epoch
    matched: float              # mean pairs per swap; 0 without swapping


def contrast_epochs(model, banks, settings, guidance=None):
    """Train `model` in place; yields an `EpochReport` after each epoch, with the model in training mode.

    Args:
        model: `CCLNet` on its device; banks: Modality -> `ImageBank` of the training images;
        settings: `ContrastSettings`; guidance: `TextGuidance` or None.
    Raises:
        UserError: all images of a modality are outliers. FloatingPointError: a loss is not finite.
    """
    optimizer = image_optimizer(model.named_parameters(), settings.lr, settings.weight_decay, settings.bias_lr_factor)
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        lr = set_lr(optimizer, warmup_step_factor(epoch, settings.warmup_epochs, settings.warmup_factor,
                                                  settings.lr_steps, settings.lr_gamma))
        with precision(settings.precision, banks[Modality.RGB].device):
            pseudo = {m: make_pseudo_labels(model, banks[m], m, settings.cluster, settings.embed_batch_size)
                      for m in Modality}
        report = _train_epoch(model, banks, settings, guidance, optimizer, epoch, pseudo)
        report.lr, report.seconds = lr, time.perf_counter() - started
        yield report


def _train_epoch(model, banks, settings, guidance, optimizer, epoch, pseudo):
    memories = {m: ClusterMemory(pseudo[m].centroids, settings.temperature, settings.momentum) for m in Modality}
    batch_size = settings.clusters_per_batch * settings.instances
    iterations = iterations_per_epoch(*(int((pseudo[m].labels >= 0).sum()) for m in Modality), batch_size)
    batches = {m: cluster_batches(pseudo[m].labels, settings.clusters_per_batch, settings.instances, iterations,
                                  numpy_rng(settings.seed, "sampler", m.value, epoch)) for m in Modality}
    model.train()
    totals, matched = {}, 0
    started = time.perf_counter()
    for iteration in tqdm(range(iterations), desc=f"epoch {epoch}", leave=False, disable=None, unit="batch"):
        positions = {m: batches[m][iteration] for m in Modality}
        images = {m: augment(banks[m].batch(positions[m]), settings.augmentation[m],
                             numpy_rng(settings.seed, "augment", m.value, epoch, iteration)) for m in Modality}
        labels = {m: torch.from_numpy(pseudo[m].labels[positions[m]]) for m in Modality}
        with precision(settings.precision, banks[Modality.RGB].device):
            losses, features = contrast_losses(model, memories, images, labels, positions, guidance)
        _check_finite(losses, epoch, iteration)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()
        for m in Modality:
            memories[m].update(features[m], labels[m])
        if epoch >= settings.swap_epoch:
            pairs = swap(memories[Modality.RGB], memories[Modality.IR], labels[Modality.RGB], labels[Modality.IR],
                         settings.swap_scale, settings.swap_order)
            matched += len(pairs[0])
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach()
    seconds = time.perf_counter() - started
    return EpochReport(epoch, pseudo, {k: float(v) / iterations for k, v in totals.items()}, 0.0, iterations,
                       2 * batch_size * iterations / seconds, 0.0, matched / iterations)


def contrast_losses(model, memories, images, labels, positions=None, guidance=None):
    """The named losses of one batch of both modalities, and the features they came from.

    Args (all Modality -> ...): memories: `ClusterMemory`; images: (B, 3, H, W) normalised; labels: (B,) clusters of
        this epoch; positions: (B,) in the training set, read by guidance alone.
    Returns: {"loss_rgb", "loss_ir"[, "loss_i2t_rgb", "loss_i2t_ir"]} scalars, and Modality -> (B, D).
    """
    sizes = [len(images[m]) for m in Modality]
    feature_map = model.paired_map(*(images[m] for m in Modality))
    features = dict(zip(Modality, model.feature(feature_map).split(sizes)))
    losses = {f"loss_{m.value}": memories[m].loss(features[m], labels[m]) for m in Modality}
    if guidance is not None:
        for m, projections in zip(Modality, model.projection(feature_map).split(sizes)):
            losses[f"loss_i2t_{m.value}"] = guidance.loss(projections, m, positions[m])
    return losses, features


def _check_finite(losses, epoch, iteration):
    values = torch.stack(list(losses.values())).detach()
    if not torch.isfinite(values).all():
        found = ", ".join(f"{name} {float(value):.4g}" for name, value in zip(losses, values))
        raise FloatingPointError(f"a loss is not finite in epoch {epoch}, iteration {iteration + 1}: {found}")
