"""Writes every epoch's numbers for TensorBoard and Weights & Biases, and measures the memory in use.

Tags are GROUP/NAME: loss, clusters, links, test, time, and step for what else the steps tell (learning rate, numbers of
a method).
"""
import importlib.util
import re
import resource
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError, explained
from utils.settings import flat

# The first word of a number's name in metrics.jsonl -> its group.
GROUPS = {"loss": "loss", "test": "test", "links": "links", "link": "links",
          **dict.fromkeys(("clusters", "cluster", "outliers", "outlier", "ari", "nmi", "purity"), "clusters"),
          **dict.fromkeys(("seconds", "images", "memory", "gpu"), "time")}
RESULTS = ("test/rank1", "test/mAP", "test/mINP")       # tags whose last values are shown beside the settings


class EventLog:
    """Writes an epoch's numbers under FOLDER/STAGE; epochs that a stopped run had written already are replaced.

    The settings are shown as hyperparameters, beside the numbers of the last test.

    Args: settings: nested dicts. `others`: loggers with the same `add`, which are given the same.
    """

    def __init__(self, folder, settings):
        self.folder, self.settings = Path(folder), settings
        self.writers, self.others = {}, []

    def add(self, stage, epoch, numbers, distributions=None, pictures=None):
        """Write what an epoch has, all by name; pictures are those of a stage's last epoch, whose numbers are there.

        Args: numbers: numbers, or dicts of them; text is left out; distributions: (N,) arrays; pictures: PIL images.
        Raises: UserError: the files cannot be written.
        """
        try:
            writer = self._writer(stage, epoch + 1 if pictures else epoch)
            for tag, value in tagged(numbers):
                writer.add_scalar(tag, value, epoch)
            for name, values in (distributions or {}).items():
                writer.add_histogram(tag_of(name), values, epoch)
            for name, picture in (pictures or {}).items():
                writer.add_image(tag_of(name), np.asarray(picture), epoch, dataformats="HWC")
            writer.flush()
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror or error}); free space or choose a "
                            "writable OUTPUT_DIR")
        for other in self.others:
            other.add(stage, epoch, numbers, distributions, pictures)

    def _writer(self, stage, first):
        """Return a stage's writer. Args: first: epoch from which on what earlier files say does not count."""
        # Slow to import: only when something is written.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        if stage not in self.writers:
            self.writers[stage] = SummaryWriter(self.folder / stage, purge_step=first, max_queue=1000)
            settings = {key: value if isinstance(value, (bool, int, float)) else str(value)
                        for key, value in flat(self.settings).items()}
            for summary in hparams(settings, dict.fromkeys(RESULTS, 0))[:2]:     # without the end of a session
                self.writers[stage].file_writer.add_summary(summary)
        return self.writers[stage]


class WandbLog:
    """Logs an epoch's numbers to Weights & Biases as STAGE/TAG, over the epochs of the stage.

    A run that resumes is a new one there, in the group of its folder.

    Args: folder: OUTPUT_DIR, where the files of the package go; script: "prepare" or "clip"; config: nested dicts.
    Raises: UserError: the package cannot start.
    """

    def __init__(self, folder, script, config):
        import wandb

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with explained("LOG.WANDB is True, but wandb cannot start",
                       "run wandb login, set the variable WANDB_MODE to offline, or set LOG.WANDB False"):
            self.run = wandb.init(project="cclnet", group=folder.resolve().name, job_type=script, dir=str(folder),
                                  config=config)
        self.histogram, self.image = wandb.Histogram, wandb.Image

    def add(self, stage, epoch, numbers, distributions=None, pictures=None):
        """Log what an epoch has, as `EventLog.add`."""
        values = {**dict(tagged(numbers)), **{tag_of(name): kind(value) for kind, found in (
            (self.histogram, distributions), (self.image, pictures)) for name, value in (found or {}).items()}}
        self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")
        self.run.log({f"{stage}/epoch": epoch, **{f"{stage}/{tag}": value for tag, value in values.items()}})


def check_wandb():
    """Refuse LOG.WANDB without the package. Raises: UserError."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("LOG.WANDB is True, but the package wandb is not installed; run .venv/bin/pip install wandb, "
                        "or set LOG.WANDB False")


def tagged(numbers):
    """List (tag, number) of numbers and dicts of them; what is no number is left out."""
    return [(tag_of(name), value) for name, value in flat(numbers).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)]


def tag_of(name):
    """Return the tag of a number's name: GROUP/NAME, without the group's name before it.

    Example:
        >>> [tag_of(name) for name in ("loss_rgb", "ari_ir", "links", "lr", "test.rank1")]
        ['loss/rgb', 'clusters/ari_ir', 'links/links', 'step/lr', 'test/rank1']
    """
    words = re.split("[_.]", name)
    group = GROUPS.get(words[0], "step")
    return f"{group}/{name[len(group) + 1:] if words[0] == group and words[1:] else name}"


def memory_use(device):
    """Measure {"memory_gb": peak of this process[, "gpu_memory_gb": peak of its tensors on the device]}."""
    numbers = {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}      # kilobytes on Linux
    if device.type == "cuda":
        numbers["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
    return numbers
