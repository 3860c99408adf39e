"""Writes every epoch's numbers as TensorBoard event files, one folder per stage, and measures the memory in use."""
import resource
from pathlib import Path

import torch

from utils.errors import UserError


class EventLog:
    """Writes an epoch's numbers under FOLDER/STAGE; epochs that a stopped run had written already are replaced."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.writers = {}

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
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror or error}); free space or choose a "
                            "writable OUTPUT_DIR")


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
