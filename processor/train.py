"""The training loop of both contrastive stages: train_prepare.py's, and the fine-tune of train_clip.py.

Every random number is drawn from a stream named by seed, purpose, epoch and step, so that an epoch is a function:
repeated from the state that the one before it has saved, it gives the same bits.
"""
from dataclasses import dataclass

from tqdm import tqdm

from clustering.labels import ClusterSettings, make_pseudo_labels
from data.batches import Batches
from loss.cameras import with_cameras
from loss.cluster_memory import cluster_means
from loss.method import EpochStart
from model.replay import ReplayedNetwork
from processor.features import embed_all
from processor.optim import set_lr, warmup_step_factor
from processor.run.epoch import end_epoch
from processor.run.state import TrainState
from utils.finite import RunningMeans
from utils.modality import Modality
from utils.runtime import autocast, gpu_rounding
from utils.seeding import torch_rng

CHECK_EVERY = 20        # steps between looks at the losses, for which a GPU is waited for
HEADS = (("feature",), ("feature", "projection"))       # of the model that are trained: without texts, with texts


@dataclass(frozen=True)
class TrainSettings:
    """The numbers of a stage; configs/settings.py explains them."""

    seed: int
    epochs: int
    cluster: ClusterSettings
    method: type                # a subclass of `Method`
    of_method: dict             # its settings, by their names in lower case
    clusters_per_batch: int     # P, of each modality
    rgb_clusters: int           # P of visible images; 0: the same
    instances: int              # K
    across_cameras: bool        # whether the images of a cluster are drawn by `data.batches.across_cameras`
    iterations: int             # of an epoch; 0: what the images give
    augmentation: dict          # Modality -> `Augmentation`
    optim: object               # the section OPTIM, its keys in lower case
    restart_epoch: int | None   # from which optimiser and learning rates begin anew; None: never
    allow_collapse: bool        # whether to train on where a modality stays in one cluster
    precision: str
    embed_batch_size: int
    cuda_graphs: bool           # whether passes are replayed (model/replay.py)

    def lr_factor(self, epoch):
        """Return what the learning rates are multiplied with in an epoch (from 1)."""
        if self.restart_epoch is not None and epoch >= self.restart_epoch:
            epoch -= self.restart_epoch - 1
        o = self.optim
        return warmup_step_factor(epoch, o.warmup_epochs, o.warmup_factor, o.steps, o.gamma)


def train(stage, model, images, settings, run, tester, guidance=None):
    """Train the epochs that are left of a stage; at the end of each, its state is saved.

    Args:
        stage: "prepare" or "finetune"; model: `CCLNet` on its device, trained in place; images: Modality ->
        `ImageBank` of the training images; settings: `TrainSettings`; run: `processor.run.folder.Run`;
        tester: `processor.evaluate.Tester`; guidance: `TextGuidance`, whose losses are added, or None.
    Returns: `TrainState` after the last epoch.
    Raises:
        UserError: all images of a modality are outliers. NonFinite: a loss, feature or weight is not finite.
    """
    s, p, method = settings, run.processes, with_cameras(settings.method(**settings.of_method))
    state = run.restore(stage, TrainState(model, s))
    cameras = {m: bank.cameras for m, bank in images.items()}
    heads = HEADS[guidance is not None]
    trained = ReplayedNetwork(model, heads) if s.cuda_graphs else p.wrap(model, lambda: model.parameters_without(heads))
    for epoch in run.epochs_left(stage, state, s.epochs):
        if epoch == s.restart_epoch:
            state.renew_optimizer()
        if epoch == method.best_epoch:
            state.take_best()
        set_lr(state.optimizer, s.lr_factor(epoch))
        features = embed_all(model, images, method, s, guidance, p)                     # 1 features of all images
        labels = {m: make_pseudo_labels(features["feature"][m], m, s.cluster, p) for m in Modality}     # 2 clusters
        labels = method.start(EpochStart(features, labels, cameras), epoch)             # 3 prototypes and links
        centres = {m: cluster_means(features["feature"][m], labels[m]) for m in Modality}
        del features        # hundreds of megabytes that the steps do not need
        batches, means = Batches(images, labels, s, epoch, method.views, p), RunningMeans()
        trained.train()
        run.training_begins()
        for batch in tqdm(batches, f"{stage} epoch {epoch}", leave=False, disable=p.hides_bars, unit="batch"):
            model.tower.draw(torch_rng(s.seed, "tower", stage, epoch, means.steps), batches.size, batches.own)
            means.add(train_step(trained, state.optimizer, method, batch, guidance, s.precision))       # 4 P x K images
            if means.steps % CHECK_EVERY == 0 or means.steps == len(batches):
                means.check(f"epoch {epoch}", batches.names)
        end_epoch(stage, epoch, state, method, labels, centres, means, batches.size, run, tester)   # 5 log, test, save
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
            losses = {**losses, **guidance.losses(out["projection"], batch)}
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()
        numbers = method.update({m: rows.detach() for m, rows in out["feature"].items()}, batch)
    return {**{f"loss_{name}": loss.detach() for name, loss in losses.items()}, **numbers}
