"""The training loop of both contrastive stages: train_prepare.py's, and the fine-tune of train_clip.py.

Every random number is drawn from a stream named by seed, purpose, epoch and iteration, so a state needs no random
state: a run that was stopped after any iteration resumes exactly.
"""
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from data import augment
from data.pseudo_labels import ClusterSettings, make_pseudo_labels
from data.sampler import cluster_batches, iterations_per_epoch
from loss.cross_memory import MemorySettings
from loss.linking import start_heads, start_memory
from loss.methods import method_class
from processor.features import embed
from processor.optim import image_optimizer, set_lr, warmup_step_factor
from processor.run.epoch import LastEpoch, end_of_epoch, finish_stage
from utils.distributed import ALONE
from utils.finite import NonFinite, RunningMeans, check_weights
from utils.modality import Modality
from utils.runtime import autocast, gpu_rounding
from utils.seeding import numpy_rng

CHECK_EVERY = 20        # steps between looks at the losses, for which a GPU is waited for


@dataclass(frozen=True)
class TrainSettings:
    """The numbers of a stage; configs/defaults.py explains them."""

    seed: int
    epochs: int
    cluster: ClusterSettings
    memory: MemorySettings
    clusters_per_batch: int     # P, of each modality
    instances: int              # K
    augmentation: dict          # Modality -> `Augmentation`
    lr: float
    bias_lr_factor: float
    weight_decay: float
    warmup_epochs: int
    warmup_factor: float
    lr_steps: tuple
    lr_gamma: float
    lr_factors: tuple           # (start of a name, factor) pairs, as `image_optimizer`
    restart_epoch: int | None   # from which optimiser and learning rates begin anew; None: never
    allow_collapse: bool        # whether to train on where a modality stays in one cluster
    precision: str
    embed_batch_size: int

    def lr_factor(self, epoch):
        """Return what the learning rates are multiplied with in an epoch (from 1)."""
        if self.restart_epoch is not None and epoch >= self.restart_epoch:
            epoch -= self.restart_epoch - 1
        return warmup_step_factor(epoch, self.warmup_epochs, self.warmup_factor, self.lr_steps, self.lr_gamma)

    @property
    def method(self):
        """The class of the memories."""
        return method_class(self.memory.method)

    def new_memory(self, means, epoch, links=None, labels=None, processes=ALONE):
        """Return the `CrossMemory` of an epoch; arguments as there."""
        return self.method(means, epoch, self.memory, links, labels, processes)


def train(stage, model, images, settings, run, tester, guidance=None, extra=None):
    """Train the epochs that are left of a stage: cluster, start the memories, take steps, test, save.

    Args:
        stage: "prepare" or "finetune"; model: `CCLNet` on its device, trained in place; images: Modality ->
        `ImageBank` of the training images; settings: `TrainSettings`; run: `processor.run.folder.Run`;
        tester: `processor.evaluate.Tester`; guidance: `TextGuidance` or None; extra: further entries of checkpoints.
    Raises:
        UserError: all images of a modality are outliers. NonFinite: a loss, feature or weight is not finite.
        Stopped: the run was asked to stop; its state is saved.
    """
    s, p, state = settings, run.processes, run.restore(stage, TrainState(model, settings, run.processes))
    trained = p.wrap(model, lambda: model.parameters_without(heads_of(guidance)))
    for epoch in run.epochs_left(stage, state, s.epochs):
        if state.under_way is None:
            if epoch == s.restart_epoch:
                state.renew_optimizer()
            embedded = {m: _features(model, images[m], m, s, epoch, p) for m in Modality}   # 1 features of all images
            labels = {m: make_pseudo_labels(embedded[m]["feature"], m, s.cluster, p) for m in Modality}     # 2 clusters
            labels, memory = start_memory(embedded, labels, epoch, s, guidance, processes=p)    # 3 links and prototypes
            state.under_way = UnderWay(labels, memory, state.clock.seconds())
            del embedded        # hundreds of megabytes that the steps do not need
        now, batches = state.under_way, Batches(images, state.under_way.labels, s, epoch, p)
        lr = set_lr(state.optimizer, s.lr_factor(epoch))
        trained.train()
        for step in tqdm(range(now.step, len(batches)), desc=f"{stage} epoch {epoch}", initial=now.step,
                         total=len(batches), leave=False, disable=p.hides_bars, unit="batch"):
            losses, numbers = train_step(trained, state.optimizer, now.memory, batches[step], guidance,             # 4
                                         s.precision, p)
            now.step = step + 1
            now.means.add({**losses, **numbers})
            if now.step % CHECK_EVERY == 0 or now.step == len(batches):
                now.means.check(f"epoch {epoch}", batches.names)
        _agree(p, model, now.memory, f"epoch {epoch}")
        end_of_epoch(stage, epoch, state, s.epochs, lr, len(batches) * batches.size, run, tester, extra)        # 5
    finish_stage(stage, state, s.epochs, run, tester, images, extra)


def heads_of(guidance):
    """Name the heads of the model that are trained. Args: guidance: `TextGuidance` or None."""
    return ("feature", "projection") if guidance else ("feature",)


def train_step(model, optimizer, memory, batch, guidance, precision, processes=ALONE):
    """Take one step of the optimiser on a batch, then let the memories follow.

    Each of several processes computes its share of the batch. Its losses are means over equal shares, so the mean of
    all processes' gradients, which the wrapped model takes, is the gradient of the whole batch.

    Args: memory: `CrossMemory`; batch: `Batch`; guidance: `TextGuidance` or None; precision: of `utils.runtime`;
        processes: of `utils.distributed`.
    Returns: the losses, name -> scalar tensor; the numbers of the memories' update.
    """
    rgb, ir = (batch.images[m] for m in Modality)
    with gpu_rounding(precision):
        with autocast(precision, rgb.device):
            out = model(rgb, ir, heads_of(guidance))
        features, labels = out["feature"], batch.labels
        if memory.needs_whole_batch:
            losses = memory.losses({m: processes.whole(features[m], len(labels[m])) for m in Modality}, labels)
        else:
            losses = memory.losses(features, {m: labels[m][processes.share(len(labels[m]))] for m in Modality})
        if guidance:
            losses |= guidance.losses(out["projection"], batch.positions, processes)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()
        numbers = memory.update({m: processes.gather(features[m], len(labels[m])) for m in Modality}, labels)
    return processes.mean(losses), numbers


@dataclass(frozen=True)
class Batch:
    """P x K augmented images of each modality (all Modality -> ...), of which each of N processes has its share.

    Where the method asks for two views of each visible image, all first views stand before all second ones, with labels
    and positions twice.
    """

    images: dict        # (B / N, 3, H, W) float32, normalised
    labels: dict        # (B,) int64 on the host, clusters of this epoch
    positions: dict     # (B,) int64 on the host, in the training set


class Batches:
    """The batches of an epoch, made when they are asked for.

    All processes draw the same batches; each reads and augments the images of its share.

    Args: images: Modality -> `ImageBank`; labels: Modality -> (N,) clusters; settings: `TrainSettings`; epoch: from 1;
        processes: of `utils.distributed`.
    """

    def __init__(self, images, labels, settings, epoch, processes=ALONE):
        s = self.settings = settings
        self.processes = processes
        self.images, self.labels, self.epoch = images, labels, epoch
        per_modality, self.views = s.clusters_per_batch * s.instances, {Modality.RGB: s.method.views, Modality.IR: 1}
        count = iterations_per_epoch(*(int((labels[m] >= 0).sum()) for m in Modality), per_modality)
        self.positions = {m: cluster_batches(labels[m], s.clusters_per_batch, s.instances, count,
                                             numpy_rng(s.seed, "sampler", m.value, epoch)) for m in Modality}
        self.size = per_modality * sum(self.views.values())     # images of both modalities

    def __len__(self):
        return len(self.positions[Modality.RGB])

    def __getitem__(self, step):
        """Return the `Batch` of a step, counted from 0."""
        positions = {m: np.tile(rows[step], self.views[m]) for m, rows in self.positions.items()}
        return Batch({m: self._augmented(m, step, positions[m]) for m in Modality},
                     {m: self.labels[m][positions[m]] for m in Modality}, positions)

    def _augmented(self, modality, step, positions):
        own, policy = self.processes.share(len(positions)), self.settings.augmentation[modality]
        bank = self.images[modality]
        images = bank.batch(positions[own])
        name, size = (self.settings.seed, "augment", modality.value, self.epoch, step), images.shape[2:]
        if self.views[modality] == 1:
            plan = augment.draw(policy, len(positions), size, numpy_rng(*name))
        else:       # channels are exchanged in the second view alone
            first = augment.draw(replace(policy, channel=0.0), len(positions) // 2, size, numpy_rng(*name))
            second = augment.draw(policy, len(positions) // 2, size, numpy_rng(*name, "second view"))
            plan = first.followed_by(second)
        return augment.apply(images, plan if len(images) == len(positions) else plan.part(own), bank.normalisation)

    def names(self, step):
        """Return the names of the images in a step's batch, for messages."""
        return [name for m in Modality for name in self.images[m].names(np.unique(self.positions[m][step]))]


class TrainState:
    """What a stage has reached: weights, optimiser, the next epoch, and what belongs to the epoch under way.

    Args: model: `CCLNet`; settings: `TrainSettings`; processes: of `utils.distributed`.
    """

    def __init__(self, model, settings, processes=ALONE):
        self.model, self.settings, self.processes = model, settings, processes
        self.renew_optimizer()
        self.epoch = 1              # the epoch that comes next or is under way
        self.under_way = None       # `UnderWay`, None before its clusters are made
        self.last = None            # `LastEpoch`, None before the first epoch's end
        self.clock = Clock()        # since the epoch began

    def renew_optimizer(self):
        """Begin with a new optimiser, without memory of earlier steps."""
        s = self.settings
        self.optimizer = image_optimizer(self.model.named_parameters(), s.lr, s.weight_decay, s.bias_lr_factor,
                                         s.lr_factors)

    def close_epoch(self, last):
        """Go to the next epoch. Args: last: `LastEpoch`, what is kept of this one."""
        self.epoch, self.under_way, self.last, self.clock = self.epoch + 1, None, last, Clock()

    def state_dict(self):
        """Return all that the rest of the stage depends on, beside data and settings. Raises: NonFinite."""
        check_weights(self.model.state_dict(), f"epoch {self.epoch}")
        return {"epoch": self.epoch, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "under_way": self.under_way and self.under_way.state_dict(),
                "last": self.last and self.last.state_dict(), "seconds": self.clock.seconds()}

    def load_state_dict(self, state):
        """Take over a saved state."""
        self.epoch, self.clock = state["epoch"], Clock(state["seconds"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.last = state["last"] and LastEpoch.from_state_dict(state["last"])
        self.under_way = None
        if state["under_way"]:
            self.under_way = UnderWay.from_state_dict(state["under_way"], self.epoch, self.settings,
                                                      next(self.model.parameters()).device, self.processes)


class UnderWay:
    """What belongs to an epoch under way.

    Args: labels: Modality -> (N,) int64 clusters; memory: `CrossMemory`; setup_seconds: what embedding and clustering
        took.
    """

    def __init__(self, labels, memory, setup_seconds):
        self.labels, self.memory, self.setup_seconds = labels, memory, setup_seconds
        self.step = 0                   # steps done
        self.means = RunningMeans()

    def state_dict(self):
        """Return it as tensors and numbers."""
        return {"labels": {m.value: torch.from_numpy(self.labels[m]) for m in Modality},
                "memory": self.memory.state_dict(), "setup_seconds": self.setup_seconds, "step": self.step}

    @classmethod
    def from_state_dict(cls, state, epoch, settings, device, processes):
        """Make it from a saved state. Args: epoch: from 1; settings: `TrainSettings`; device: of the prototypes."""
        labels = {m: state["labels"][m.value].cpu().numpy() for m in Modality}
        memory = settings.method.restored(state["memory"], epoch, settings.memory, labels, device, processes)
        under_way = cls(labels, memory, state["setup_seconds"])
        under_way.step = state["step"]
        return under_way


class Clock:
    """Seconds since it was made, and those of an earlier run. Args: before: seconds that the earlier run took."""

    def __init__(self, before=0.0):
        self.started = time.perf_counter() - before

    def seconds(self):
        """Return the seconds so far."""
        return time.perf_counter() - self.started


def _agree(processes, model, memory, when):
    """End an epoch's steps with the same state in all processes. Raises: UserError: memories or weights differ."""
    for buffer in model.buffers():      # running statistics, where each process has its own batch norm
        processes.same(buffer)
    processes.compare(when, memories=memory.state_dict(), weights=model.state_dict())


def _features(model, images, modality, settings, epoch, processes):
    """Embed all training images of a modality: {head: (N, ·)}. Raises: NonFinite: names the epoch too."""
    try:
        return embed(model, images, modality, start_heads(settings.memory), batch_size=settings.embed_batch_size,
                     precision=settings.precision, mirrored=settings.method.mirrored, processes=processes)
    except NonFinite as error:
        raise error.at(f"epoch {epoch}")
