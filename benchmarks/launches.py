"""Count what a training step asks a GPU's host to launch, by part; no GPU is needed.

Every operation of ATen that computes or copies counts once; views do not. The step is the shipped one, of 2 x 64 small
images with a ResNet-50 of the released depth, in bf16, after METHOD.CROSS_EPOCH. Adam, a few launches on a GPU and many
on a CPU, is left out.

    python -m benchmarks.launches
"""
import sys
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.parts import resnet
from configs.defaults import load_config
from data.batches import Batches
from data.images import ImageBank
from loss.method import EpochStart
from processor.setup import train_settings
from processor.train import TrainState, train_step
from utils.finite import RunningMeans
from utils.modality import Modality

# Innermost first: (end of a file's name, function or "" for any) -> part.
PARTS = {("torch/optim/adam.py", ""): "Adam", ("torch/_tensor.py", "backward"): "backward",
         ("loss/cclnet.py", "swap_what_is_due"): "swap", ("loss/links.py", "cosines"): "swap",
         ("loss/cclnet.py", "update"): "memories", ("loss/cclnet.py", "losses"): "losses",
         ("model/cclnet.py", "forward"): "forward", ("data/batches.py", "__getitem__"): "images",
         ("utils/finite.py", ""): "running means"}
VIEWS = ("view", "expand", "permute", "transpose", "slice", "select", "split", "squeeze", "alias", "detach", "empty",
         "as_strided", "unbind", "unfold", "reshape", "lift_fresh", "local_scalar_dense", "is_pinned", "aten.t.")


class Launches(TorchDispatchMode):
    """Counts the launches of a block by part: `found`."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count an operation and run it."""
        part = _part()
        if part != "Adam" and not any(word in str(func) for word in VIEWS):
            self.found[part] += 1
        return func(*args, **(kwargs or {}))


def _part():
    """Return the part in which the innermost function of PARTS runs."""
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        for (file, function), part in PARTS.items():
            if code.co_filename.endswith(file) and function in ("", code.co_name):
                return part
        frame = frame.f_back
    return "rest"


def count(steps=2, images=600, clusters=60, words=()):
    """Count the launches of an average step: {part: number}.

    Args: images, clusters: of each modality; words: KEY VALUE words, settings that differ from the released ones.
    """
    torch.manual_seed(0)
    settings = train_settings(load_config(None, ["PRECISION", "bf16", "METHOD.CROSS_EPOCH", "1", *words]), "prepare")
    model = resnet((3, 4, 6, 3), 16, 32, 16).to(memory_format=torch.channels_last)        # as `Setup.place`
    rng = np.random.default_rng(0)
    banks = {m: ImageBank(rng.integers(0, 256, (images, 32, 16, 3), dtype=np.uint8)) for m in Modality}
    labels = {m: rng.permutation(np.arange(images) % clusters) for m in Modality}
    state, method = TrainState(model.train(), settings), settings.method(**settings.of_method)
    features = {m: F.normalize(torch.randn(images, model.feature_dim), dim=1) for m in Modality}
    method.start(EpochStart({"feature": features}, labels, {m: bank.cameras for m, bank in banks.items()}), 1)
    for group in state.optimizer.param_groups:
        group["lr"] = group["base_lr"]
    batches, means = Batches(banks, labels, settings, 1), RunningMeans()

    def step(number):
        means.add(train_step(model, state.optimizer, method, batches[number], None, settings.precision))
    step(0)         # the first has no swap before it, and makes Adam's state
    with Launches() as launches:
        for number in range(1, 1 + steps):
            step(number)
        means.check("", str)
    return {part: round(number / steps, 1) for part, number in launches.found.items()}


def main():
    """Print the table."""
    found = count()
    for part, number in sorted(found.items(), key=lambda row: -row[1]):
        print(f"{part:<16}{number:8.1f}")
    print(f"{'all':<16}{sum(found.values()):8.1f}")


if __name__ == "__main__":
    main()
