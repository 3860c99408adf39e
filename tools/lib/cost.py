"""What a stage costs: hours, memory and disk, from the time of its parts."""
from dataclasses import dataclass


@dataclass(frozen=True)
class StageCost:
    """The parts of a stage's time, in seconds, and what it needs, in GiB."""

    stage: str
    epochs: int
    epoch_seconds: float
    tests: int = 0
    test_seconds: float = 0.0       # of each
    once_seconds: float = 0.0       # start of the script, and what is done before the first epoch
    swap_epochs: int = 0            # epochs with memory swapping
    swap_seconds: float = 0.0       # what it adds to each of them
    host_gb: float = 0.0            # peak of the process
    gpu_gb: float = 0.0             # peak of its tensors on the GPU
    disk_gb: float = 0.0

    @property
    def seconds(self):
        """The whole stage."""
        return (self.once_seconds + self.epochs * self.epoch_seconds + self.swap_epochs * self.swap_seconds
                + self.tests * self.test_seconds)

    def line(self):
        """Write an estimate in one line, for the log."""
        tests = f", {self.tests} tests of about {self.test_seconds:.1f} s" if self.tests else ""
        gpu = f", {self.gpu_gb:.1f} GB on the GPU" if self.gpu_gb else ""
        return (f"estimate of {self.stage}: {duration(self.seconds)} in all ({self.epochs} epochs of "
                f"{self.epoch_seconds:.1f} s{tests}), memory {self.host_gb:.1f} GB{gpu}, {self.disk_gb:.2f} GB on disk")


def count_tests(epochs, every):
    """Count the tests of a stage: every few epochs, and after the last."""
    return -(-epochs // every)


def duration(seconds):
    """Write seconds as minutes or hours."""
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
