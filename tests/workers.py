"""What several processes do in tests/test_distributed.py, such as the shipped training loop in fp64."""
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import scripts
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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

# Processes are forked from a server that has imported what is slow, also what is imported when a function is called.
multiprocessing.get_context("forkserver").set_forkserver_preload([
    "tests.workers", "processor.setup", "open_clip", "report.write", "torch.utils.tensorboard"])
KNOWN = {m: np.where(np.arange(PEOPLE * EACH) % 3, np.arange(PEOPLE).repeat(EACH), -1) for m in Modality}
KNOWN[Modality.IR][KNOWN[Modality.IR] == 2] = -1        # a third of the images has no text, and a whole cluster
SETTINGS = {"SAMPLER__CLUSTERS": 4, "SAMPLER__INSTANCES": 2, "METHOD__CROSS_EPOCH": 1, "INPUT__ERASE": 0.5,
            "INPUT__GREY": 0.5, "INPUT__PAD": 2, "OPTIM__WARMUP_EPOCHS": 0, "SAMPLER__ITERATIONS": 2}


def launch(size, folder, function, *arguments):
    """Let torchrun's launcher start processes that call a function of this file: what each returns, and has said.

    Raises ChildFailedError: one of them has failed.
    """
    folder.mkdir(exist_ok=True)
    logs = DefaultLogsSpecs(log_dir=str(folder), redirects=Std.ALL)
    config = LaunchConfig(1, 1, size, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="run", logs_specs=logs,
                          start_method="forkserver", max_restarts=0)
    returned = elastic_launch(config, function)(*arguments)
    return [returned[rank] for rank in range(size)], [
        "".join(path.read_text() for path in folder.rglob(f"{rank}/std*.log")) for rank in range(size)]


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
    torch.set_num_threads(1)
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
    if processes.size > 1:
        with pytest.raises(UserError, match="^after epoch 3 the weights of process 1 differ from those of process 0; "):
            processes.compare("epoch 3", same={"w": torch.ones(2)}, weights={"w": torch.full((2,), processes.rank)})
    processes.leave()


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


def script(name, words):
    """Call one of the three scripts without the page at its end: its exit code."""
    torch.set_num_threads(1)
    scripts.without_report(pytest.MonkeyPatch())
    return scripts.call(scripts.load(name), words)
