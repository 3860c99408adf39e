"""Training steps in fp64 that several processes share, for tests/test_distributed.py."""
import numpy as np
import torch

from data.pseudo_labels import ClusterSettings, make_pseudo_labels
from loss.linking import start_memory
from model.batch_norm import spread_batch_norm
from processor.features import embed
from processor.guidance import TextGuidance
from processor.train import Batches, TrainState, heads_of, train_step
from tests.tiny import EACH, PEOPLE, tiny_banks, tiny_model, tiny_settings
from utils.distributed import join_processes
from utils.modality import Modality

LABELS = {m: np.repeat(np.arange(PEOPLE), EACH) for m in Modality}
KNOWN = {m: np.where(np.arange(PEOPLE * EACH) % 3 == 0, -1, LABELS[m]) for m in Modality}     # a third without a text
KNOWN[Modality.IR][LABELS[Modality.IR] == 2] = -1       # and a whole cluster
STEPS = 12
SETTINGS = {"SAMPLER__CLUSTERS": 4, "SAMPLER__INSTANCES": 2, "MEMORY__SWAP_EPOCH": 1, "INPUT__ERASE": 0.5,
            "INPUT__GREY": 0.5, "INPUT__PAD": 2, "OPTIM__WARMUP_EPOCHS": 0}


def train_twelve_steps(clip_file, processes, device, dtype, splits, guided, method="cclnet", space="prototype",
                       gradients="exact"):
    """Train on drawn images, known clusters and features drawn at random, in epochs in which the modalities meet.

    Returns: the weights and what the last epoch's memory holds, on the host; the losses of every step.
    """
    banks = tiny_banks()
    settings = tiny_settings(epochs=3, **SETTINGS, MEMORY__METHOD=method, MEMORY__MATCH_BY=space,
                             MEMORY__GRADIENTS=gradients)
    for bank in banks.values():
        bank.device = torch.device(device)
    model = tiny_model(clip_file).to(device, dtype)
    if splits:
        spread_batch_norm(model, splits, processes, settings.method.views)
    generator = torch.Generator().manual_seed(0)
    texts = {m: torch.randn(PEOPLE, 32, generator=generator).to(device, dtype) for m in Modality}
    guidance = TextGuidance(texts, KNOWN, 0.1) if guided else None
    state = TrainState(model, settings)
    wrapped = processes.wrap(model, lambda: model.parameters_without(heads_of(guidance)))
    sizes = {"feature": model.feature_dim, "projection": 32}
    embedded = {m: {head: torch.randn(PEOPLE * EACH, size, generator=generator).to(device, dtype)
                    for head, size in sizes.items()} for m in Modality}
    wrapped.train()
    losses, epoch = [], 0
    while len(losses) < STEPS:
        epoch += 1
        labels, memory = start_memory(embedded, LABELS, epoch, settings, guidance, processes=processes)
        batches = Batches(banks, labels, settings, epoch, processes)
        for step in range(min(len(batches), STEPS - len(losses))):
            found, _ = train_step(wrapped, state.optimizer, memory, batches[step], guidance, "fp32", processes)
            losses.append({name: float(value.detach()) for name, value in found.items()})
    for buffer in model.buffers():
        processes.same(buffer)
    state = {**model.state_dict(), **{f"{part}.{name}": value for part, held in memory.state_dict().items()
                                      for name, value in held.items()}}
    return {name: value.cpu() for name, value in state.items()}, losses


def steps(cases, clip_file, folder, device="cpu"):
    """Train in each case, (splits, guided, ...), and save what the process has reached: FOLDER/RANK.pt."""
    processes = join_processes(device)
    double = torch.float64 if device == "cpu" else torch.float32
    if device == "cpu":
        torch.Tensor.float = torch.Tensor.double        # the code computes losses in fp32 on purpose
    found = [train_twelve_steps(clip_file, processes, processes.own(torch.device(device)), double, *case)
             for case in cases]
    torch.save(found, folder / f"{processes.rank}.pt")
    processes.leave()


def embedding_and_labels(clip_file, folder):
    """Embed all images by batches of 7 and of all, cluster them, and save both: FOLDER/RANK.pt."""
    processes, banks = join_processes("cpu"), tiny_banks()
    model, found = tiny_model(clip_file), []
    for size in (7, 64):
        features = {m: embed(model, banks[m], m, ("feature", "projection"), batch_size=size, precision="fp32",
                             processes=processes) for m in Modality}
        labels = {m: make_pseudo_labels(features[m]["feature"], m, ClusterSettings(5, 2, 0.6, 4), processes)
                  for m in Modality}
        found.append({m.value: (features[m], torch.from_numpy(labels[m])) for m in Modality})
    torch.save(found, folder / f"{processes.rank}.pt")
    processes.leave()
