"""The training loop of both contrastive stages: train_prepare.py's, and the fine-tune of train_clip.py.

Every random number is drawn from a stream named by seed, purpose, epoch and step, so that an epoch is a function:
repeated from the state that the one before it has saved, it gives the same bits.
"""
import time

import torch
from tqdm import tqdm

from clustering.labels import make_pseudo_labels
from data.batches import Batches
from loss.cameras import with_cameras
from loss.cluster_memory import cluster_means
from loss.links import LinkedClusters
from loss.method import EpochStart, check_labels, joined
from model.replay import ReplayedNetwork
from processor.features import embed_all
from processor.optim import image_optimizer, lr_factor, set_lr
from processor.run.epoch import end_epoch
from utils.finite import RunningMeans
from utils.modality import Modality
from utils.runtime import autocast, gpu_rounding
from utils.seeding import torch_rng

CHECK_EVERY = 20        # steps between looks at the losses, for which a GPU is waited for
HEADS = (("feature",), ("feature", "projection"))       # of the model that are trained: without texts, with texts


class TrainState:
    """What a stage has reached: all that the epochs left depend on, beside data and settings.

    Args: model: `CCLNet`; settings: of `processor.setup.train_settings`.
    """

    def __init__(self, model, settings):
        self.model, self.settings, self.epoch = model, settings, 1      # the next epoch
        self.labels = None      # of the last epoch, Modality -> (N,), for the pseudo labels and the page
        self.linked = None      # its `LinkedClusters`
        self.evaluation = None  # `Evaluation` of the test at its end, if there was one; not saved
        self.best = None        # weights that were best on test data, where the method's `best_epoch` is to come
        self.optimizer = image_optimizer(model.named_parameters(), settings.optim)

    def state_dict(self):
        """Return it as tensors and numbers."""
        return {"epoch": self.epoch, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "labels": {m.value: torch.from_numpy(labels) for m, labels in self.labels.items()}, "best": self.best,
                "linked": self.linked and [torch.from_numpy(values) for values in self.linked]}

    def load_state_dict(self, state):
        """Take over a saved state."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state.get("best")
        self.labels = {m: state["labels"][m.value].numpy() for m in Modality}
        self.linked = state["linked"] and LinkedClusters(*(values.numpy() for values in state["linked"]))


def train(stage, model, images, settings, run, tester, guidance=None):
    """Train the epochs that are left of a stage; at the end of each, its state is saved.

    Args:
        stage: "prepare" or "finetune"; model: `CCLNet` on its device, trained in place; images: Modality ->
        `ImageBank` of the training images; settings: of `processor.setup.train_settings`; run: `Run`;
        tester: `processor.evaluate.Tester`; guidance: `TextGuidance`, whose losses are added, or None.
    Returns: `TrainState` after the last epoch.
    Raises:
        UserError: all images of a modality are outliers. NonFinite: a loss, feature or weight is not finite.
    """
    s, p, method = settings, run.processes, with_cameras(settings.method(**settings.of_method))
    state = run.restore(stage, TrainState(model, s))
    cameras = {m: bank.cameras for m, bank in images.items()}
    heads = HEADS[guidance is not None]
    trained = ReplayedNetwork(model, heads) if s.cuda_graphs else p.wrap(model)
    for epoch in run.epochs_left(stage, state, s.epochs):
        if epoch == s.restart_epoch:
            state.optimizer = image_optimizer(model.named_parameters(), s.optim)    # without memory of earlier steps
        if epoch == method.best_epoch and state.best:       # there is none before the first epoch
            model.load_state_dict(state.best)
            state.best = None
        set_lr(state.optimizer, lr_factor(s, epoch))
        features = embed_all(model, images, method, s, guidance, p)                     # 1 features of all images
        labels = {m: make_pseudo_labels(features["feature"][m], m, s.cluster, p) for m in Modality}     # 2 clusters
        labels = method.start(EpochStart(features, labels, cameras), epoch)             # 3 prototypes and links
        check_labels(labels, s.method, cameras)
        centres = {m: cluster_means(features["feature"][m], labels[m]) for m in Modality}
        del features        # hundreds of megabytes that the steps do not need
        batches, means = Batches(images, labels, s, epoch, method.views, p), RunningMeans()
        trained.train()
        began = time.perf_counter()
        for batch in tqdm(batches, f"{stage} epoch {epoch}", leave=False, disable=p.hides_bars, unit="batch"):
            model.tower.draw(torch_rng(s.seed, "tower", stage, epoch, means.steps), batches.size, batches.own)
            means.add(train_step(trained, state.optimizer, method, batch, guidance, s.precision))       # 4 P x K images
            if means.steps % CHECK_EVERY == 0 or means.steps == len(batches):
                means.check(f"epoch {epoch}", batches.names)
        per_second = means.steps * batches.size / (time.perf_counter() - began)
        end_epoch(stage, epoch, state, method, labels, centres, means, per_second, run, tester)     # 5 log, test, save
    return state


def train_step(model, optimizer, method, batch, guidance=None, precision="released"):
    """Take one step of the optimiser on a batch, then let the method follow.

    Args: model: `CCLNet`, wrapped where several processes share a batch; method: `Method` that has started the epoch;
        batch: `Batch`; guidance: `TextGuidance` or None; precision: of `utils.runtime`.
    Returns: {"loss_NAME": scalar tensor} of every loss, and the numbers of the method's update.
    """
    rgb, ir = (batch.images[m] for m in Modality)
    with gpu_rounding(precision):
        with autocast(precision, rgb.device):
            out = model(rgb, ir, HEADS[guidance is not None])
        losses = method.losses(out["feature"], batch)
        if guidance:
            losses = joined(losses, guidance.losses(out["projection"], batch))
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()
        numbers = method.update({m: rows.detach() for m, rows in out["feature"].items()}, batch)
    return {**numbers, **{f"loss_{name}": loss.detach() for name, loss in losses.items()}}     # no loss is replaced
