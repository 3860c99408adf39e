"""Writes every epoch's numbers as TensorBoard event files, one folder per stage, and measures the memory in use."""
import importlib.util
import resource
from pathlib import Path

import torch

from utils.errors import UserError, explained


class EventLog:
    """Writes an epoch's numbers under FOLDER/STAGE; epochs that a stopped run had written already are replaced.

    `others`: loggers with the same `add`, which are given the same numbers.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.writers, self.others = {}, []

    def add(self, stage, epoch, numbers, distributions=None):
        """Write numbers (name -> number, or a dict of them; text is left out) and distributions (name -> (N,)).

        Raises: UserError: the files cannot be written.
        """
        # Slow to import: only when something is written.
        from torch.utils.tensorboard import SummaryWriter

        try:
            if stage not in self.writers:
                self.writers[stage] = SummaryWriter(self.folder / stage, purge_step=epoch, max_queue=1000)
            writer = self.writers[stage]
            for name, value in flat_numbers(numbers):
                writer.add_scalar(name, value, epoch)
            for name, values in (distributions or {}).items():
                writer.add_histogram(name, values, epoch)
            writer.flush()
            for other in self.others:
                other.add(stage, epoch, numbers, distributions)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror or error}); free space or choose a "
                            "writable OUTPUT_DIR")


class WandbLog:
    """Logs an epoch's numbers to Weights & Biases as STAGE/NAME, over the epochs of the stage.

    A run that resumes is a new one there, in the group of its folder.

    Args: folder: OUTPUT_DIR, where the files of the package go; script: "prepare" or "clip"; config: nested dicts.
    Raises: UserError: the package is missing, or it cannot start.
    """

    def __init__(self, folder, script, config):
        check_wandb()
        import wandb

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with explained("LOG.WANDB is True, but wandb cannot start",
                       "run wandb login, set the variable WANDB_MODE to offline, or set LOG.WANDB False"):
            self.run = wandb.init(project="cclnet", group=folder.resolve().name, job_type=script, dir=str(folder),
                                  config=config)
        self.histogram = wandb.Histogram
        self.stages = set()

    def add(self, stage, epoch, numbers, distributions=None):
        """Log numbers and distributions, as `EventLog.add`."""
        if stage not in self.stages:
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")
            self.stages.add(stage)
        self.run.log({f"{stage}/epoch": epoch, **{f"{stage}/{name}": value for name, value in flat_numbers(numbers)},
                      **{f"{stage}/{name}": self.histogram(values) for name, values in (distributions or {}).items()}})


def check_wandb():
    """Refuse LOG.WANDB without the package. Raises: UserError."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("LOG.WANDB is True, but the package wandb is not installed; run .venv/bin/pip install wandb, "
                        "or set LOG.WANDB False")


def flat_numbers(tree, prefix=""):
    """Yield (name, number) of a tree of dicts, names joined by "/"; what is no number is left out."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def memory_use(device):
    """Measure {"memory_gb": peak of this process[, "gpu_memory_gb": peak of its tensors on the device]}."""
    numbers = {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}      # kilobytes on Linux
    if device.type == "cuda":
        numbers["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
    return numbers
