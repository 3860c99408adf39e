"""The shipped training loop in fp64, which several processes share, for tests/test_distributed.py."""
import os
import signal
import time

import numpy as np
import torch

import clustering.neighbours
from model.batch_norm import spread_batch_norm
from model.cclnet import CCLNet
from model.towers.registry import load_tower
from processor.guidance import TextGuidance
from processor.train import train
from tests.tiny import EACH, HEIGHT, PEOPLE, WIDTH, TinyRun, tiny_banks, tiny_settings, tiny_tester
from utils.distributed import join_processes
from utils.errors import UserError, exit_on_user_error, stops_on_signals
from utils.modality import Modality

KNOWN = {m: np.where(np.arange(PEOPLE * EACH) % 3, np.arange(PEOPLE).repeat(EACH), -1) for m in Modality}
KNOWN[Modality.IR][KNOWN[Modality.IR] == 2] = -1        # a third of the images has no text, and a whole cluster
SETTINGS = {"SAMPLER__CLUSTERS": 4, "SAMPLER__INSTANCES": 2, "METHOD__CROSS_EPOCH": 1, "INPUT__ERASE": 0.5,
            "INPUT__GREY": 0.5, "INPUT__PAD": 2, "OPTIM__WARMUP_EPOCHS": 0, "SAMPLER__ITERATIONS": 3}


class DoubleCCLNet(CCLNet):
    """A `CCLNet` in fp64, which gets fp32 images."""

    def forward(self, rgb, ir, *rest):
        return super().forward(rgb.double(), ir.double(), *rest)

    def encode(self, images, *rest):
        return super().encode(images.double(), *rest)


def new_model(clip_file, kind=CCLNet):
    """A `CCLNet` of a small CLIP."""
    return kind(load_tower(clip_file, height=HEIGHT, width=WIDTH))


def train_two_epochs(clip_file, folder, splits, guided, changes, device="cpu"):
    """Train in epochs in which the modalities meet; every process keeps a run of its own under FOLDER/RANK.

    Args: splits: of the batch norm; guided: whether texts guide the training; changes: of the settings.
    """
    processes = join_processes(device)
    device = processes.own(torch.device(device))
    dtype, kind = torch.float32, CCLNet
    if device.type == "cpu":
        dtype, kind = torch.float64, DoubleCCLNet
        torch.set_default_dtype(dtype)
        torch.Tensor.float = torch.Tensor.double        # the code computes losses in fp32 on purpose
        clustering.neighbours.faiss = None              # which searches in fp32 alone
    settings, banks = tiny_settings(epochs=2, **SETTINGS, **changes), tiny_banks()
    for bank in banks.values():
        bank.device = device
    model = new_model(clip_file, kind).to(device, dtype)
    spread_batch_norm(model, splits, processes, (settings.method.views, 1))
    generator = torch.Generator().manual_seed(0)
    texts = {m: torch.randn(PEOPLE, 32, generator=generator).to(device, dtype) for m in Modality}
    run = TinyRun(folder / str(processes.rank))
    run.processes = processes
    train("finetune", model, banks, settings, run, tiny_tester(banks),
          TextGuidance(texts, KNOWN, 0.1) if guided else None)
    processes.leave()


def differing_weights(folder):
    """Compare states, first the same ones, then others in every process; write what is said about them."""
    processes = join_processes("cpu")
    try:
        processes.compare("epoch 1", memories={"rgb": torch.ones(3)}, weights={"w": torch.ones(2)})
        processes.compare("epoch 2", memories={"rgb": torch.ones(3)}, weights={"w": torch.full((2,), processes.rank)})
    except UserError as error:
        (folder / f"{processes.rank}.txt").write_text(str(error))


def to_the_end():
    """Play a script of three processes of which the second is killed: process 2 waits in a message, 0 in Python."""
    def main():
        processes = join_processes("cpu")
        with stops_on_signals(lambda: "the same command resumes with epoch 7"):
            processes.once(lambda: None)        # all are here
            if processes.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            processes.once(lambda: time.sleep(600))

    exit_on_user_error(main)
