"""The contrastive stage, one loop for train_prepare.py and for the fine-tuning of train_clip.py.

Every epoch: embed all training images, cluster each modality, start a memory from the centroids, and train on
P x K batches. With a `TextGuidance` the images are also drawn to the texts of their clusters.
"""
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from data.augment import Augmentation, apply, draw
from data.sampler import cluster_batches, iterations_per_epoch
from loss.cluster_memory import ClusterMemory, Pairs, PrototypeSimilarity, match_prototypes, swap
from loss.image_text import image_to_text
from processor.features import embed
from processor.finite import NonFinite, check_losses, check_weights
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
    restart_epoch: int | None = None    # from which the optimiser and its learning rates begin anew
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
    labels: dict                # Modality -> (N,) int64 pseudo labels, made at the start of the epoch
    losses: dict                # name -> mean over the iterations
    lr: float
    iterations: int
    images_per_second: float    # of the training iterations alone
    seconds: float              # all of the epoch
    matched: float              # mean pairs per swap; 0 without swapping
    similarity: float           # mean cosine of the pairs before they are mixed; 0 without swapping
    pairs: Pairs                # prototypes that match at its end


class ContrastStage:
    """The training loop, one epoch after the other.

    Every random number is drawn from a stream named by seed, purpose, epoch and iteration, so `state_dict` needs no
    random state: a stage that was stopped after any iteration goes on exactly as it would have.

    Args:
        model: `CCLNet` on its device, trained in place; banks: Modality -> `ImageBank` of the training images;
        settings: `ContrastSettings`; guidance: `TextGuidance` or None; first_features: Modality -> (N, D) features of
        the model as it is, where they are known already.
    """

    def __init__(self, model, banks, settings, guidance=None, first_features=None):
        self.model, self.banks, self.settings, self.guidance = model, banks, settings, guidance
        self.first_features = first_features
        self.optimizer = self._new_optimizer()
        self.epoch = 1              # the epoch that comes next or is under way
        self.iteration = 0          # its iterations done
        self.labels = None          # Modality -> (N,) pseudo labels of the epoch under way, None before it starts
        self.memories = None        # Modality -> ClusterMemory, likewise
        self.similarity = None      # PrototypeSimilarity of the epoch under way, None before its first swap
        self.totals = {}            # name -> sum over the iterations done
        self.positions = {}         # Modality -> (B,) images of the last step

    def epochs(self, after_step=lambda: None):
        """Train all epochs that are left; yields an `EpochReport` after each. `after_step()` runs after iterations.

        Raises:
            UserError: all images of a modality are outliers. NonFinite: a loss, feature or weight is not finite.
        """
        while self.epoch <= self.settings.epochs:
            started = time.perf_counter()
            s = self.settings
            if self.labels is None:
                if self.epoch == s.restart_epoch:
                    self.optimizer = self._new_optimizer()
                self._cluster()
            restarted = s.restart_epoch is not None and self.epoch >= s.restart_epoch
            lr = set_lr(self.optimizer, warmup_step_factor(self.epoch - (s.restart_epoch - 1 if restarted else 0),
                                                           s.warmup_epochs, s.warmup_factor, s.lr_steps, s.lr_gamma))
            report = self._train(after_step)
            report.lr, report.seconds = lr, time.perf_counter() - started
            self.epoch, self.iteration, self.totals = self.epoch + 1, 0, {}
            self.labels = self.memories = self.similarity = None
            yield report

    def _new_optimizer(self):
        s = self.settings
        return image_optimizer(self.model.named_parameters(), s.lr, s.weight_decay, s.bias_lr_factor)

    def _cluster(self):
        """Start the epoch: pseudo labels from the model as it is, memories from their centroids."""
        s = self.settings
        try:
            features = self.first_features or {
                m: embed(self.model, self.banks[m], m, batch_size=s.embed_batch_size, mode=s.precision)
                for m in Modality}
        except NonFinite as error:
            raise NonFinite(error.term, error.images, epoch=self.epoch)
        self.first_features = None
        pseudo = {m: make_pseudo_labels(features[m], m, s.cluster) for m in Modality}
        self.labels = {m: pseudo[m].labels for m in Modality}
        self.memories = {m: ClusterMemory(pseudo[m].centroids, s.temperature, s.momentum) for m in Modality}

    def _train(self, after_step):
        s = self.settings
        batch_size = s.clusters_per_batch * s.instances
        iterations = iterations_per_epoch(*(int((self.labels[m] >= 0).sum()) for m in Modality), batch_size)
        batches = {m: cluster_batches(self.labels[m], s.clusters_per_batch, s.instances, iterations,
                                      numpy_rng(s.seed, "sampler", m.value, self.epoch)) for m in Modality}
        self.model.train()
        started, first = time.perf_counter(), self.iteration
        images = self._images(batches, first)
        for iteration in tqdm(range(first, iterations), desc=f"epoch {self.epoch}", initial=first, total=iterations,
                              leave=False, disable=None, unit="batch"):
            self.positions = {m: batches[m][iteration] for m in Modality}
            labels = {m: torch.from_numpy(self.labels[m][self.positions[m]]) for m in Modality}
            losses, features = self._optimise(images, labels)
            images = self._images(batches, iteration + 1)       # a GPU is still busy with the step
            check_losses(losses, features, self.banks, self.positions, epoch=self.epoch, iteration=iteration + 1)
            for name, value in {**losses, **self._remember(features, labels)}.items():
                self.totals[name] = self.totals.get(name, 0) + value
            self.iteration = iteration + 1
            after_step()
        self._check_weights()
        means = {name: float(total) / iterations for name, total in self.totals.items()}
        matched, similarity = means.pop("matched", 0.0), means.pop("similarity", 0.0)
        return EpochReport(self.epoch, self.labels, means, 0.0, iterations,
                           2 * batch_size * (iterations - first) / (time.perf_counter() - started), 0.0, matched,
                           similarity,
                           match_prototypes(PrototypeSimilarity(*(self.memories[m] for m in Modality)).values))

    def _images(self, batches, iteration):
        """The augmented images of an iteration: Modality -> (B, 3, H, W); None after the last."""
        if iteration == len(batches[Modality.RGB]):
            return None
        images = {m: self.banks[m].batch(batches[m][iteration]) for m in Modality}
        return {m: apply(images[m], draw(self.settings.augmentation[m], len(images[m]), images[m].shape[2:], numpy_rng(
            self.settings.seed, "augment", m.value, self.epoch, iteration))) for m in Modality}

    def _optimise(self, images, labels):
        """One optimiser step: the losses by name, and Modality -> (B, D) features."""
        with precision(self.settings.precision, self.banks[Modality.RGB].device):
            losses, features = contrast_losses(self.model, self.memories, images, labels, self.positions, self.guidance)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        self.optimizer.step()
        return ({name: loss.detach() for name, loss in losses.items()},
                {m: feature.detach() for m, feature in features.items()})

    def _remember(self, features, labels):
        """Move the prototypes towards the batch; from the swap epoch on, swap: numbers of the matching by name."""
        s = self.settings
        for m in Modality:
            self.memories[m].update(features[m], labels[m])
        if self.epoch < s.swap_epoch:
            return {}
        rgb, ir = (self.memories[m] for m in Modality)
        if self.similarity is None:
            self.similarity = PrototypeSimilarity(rgb, ir)
        pairs = swap(rgb, ir, *labels.values(), s.swap_scale, s.swap_order, self.similarity)
        return {"matched": len(pairs.rgb), "similarity": float(pairs.cosine.mean()) if len(pairs.rgb) else 0.0}

    def _check_weights(self):
        check_weights(self.model.state_dict(), self.banks, self.positions, epoch=self.epoch, iteration=self.iteration)

    def state_dict(self):
        """All that the rest of the stage depends on, beside data and settings. Raises: NonFinite: weights are not."""
        self._check_weights()
        return {"epoch": self.epoch, "iteration": self.iteration, "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "labels": self.labels and {m.value: torch.from_numpy(v) for m, v in self.labels.items()},
                "prototypes": self.memories and {m.value: v.prototypes for m, v in self.memories.items()},
                "similarity": self.similarity and self.similarity.state_dict(),
                "totals": {name: float(total) for name, total in self.totals.items()}}

    def load_state_dict(self, state):
        """Go on where the stage that gave `state` was."""
        self.first_features = None
        s, device = self.settings, self.banks[Modality.RGB].device
        self.epoch, self.iteration, self.totals = state["epoch"], state["iteration"], dict(state["totals"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.labels = state["labels"] and {m: state["labels"][m.value].cpu().numpy() for m in Modality}
        self.memories = self.similarity = None
        if state["prototypes"]:
            prototypes = {m: state["prototypes"][m.value].to(device) for m in Modality}
            self.memories = {m: ClusterMemory(p, s.temperature, s.momentum) for m, p in prototypes.items()}
            for m, memory in self.memories.items():
                memory.prototypes = prototypes[m]      # to the bit: normalising again would change the last one
        if state["similarity"]:
            self.similarity = PrototypeSimilarity(*(self.memories[m] for m in Modality))
            self.similarity.load_state_dict(state["similarity"])


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
