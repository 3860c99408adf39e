"""What all processes of a run agree on. torchrun starts N of them; each computes its share, all have the same result.

`join_processes` makes the one object that is passed to the parts that need it; `ALONE` is that of a single process.
The engine is torch.distributed: NCCL between GPUs, gloo between hosts. Every process calls the same methods in the same
order. When one of them dies, torchrun ends the others; none waits longer than PATIENCE for a message.
"""
import os
import zlib
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError

PATIENCE = timedelta(minutes=30)        # for a message of the others: one process clusters while they wait


class Processes:
    """One of the processes of a run, joined by torch.distributed; alone, every share is the whole.

    Args: rank: of this process; size: number of processes; local_rank: among the processes of this machine;
        device_type: "cuda" or "cpu", of all. Raises: UserError: the processes have different ones.
    """

    def __init__(self, rank=0, size=1, local_rank=0, device_type="cpu"):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.writes = rank == 0             # the files of the run
        self.hides_bars = None if self.writes else True     # tqdm's `disable`; None: shown in a terminal
        if size > 1:
            dist.init_process_group("gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
            if len(set(self._of_all(device_type))) > 1:
                raise UserError("some processes have a GPU and others have none; set DEVICE cpu, or start processes on "
                                "machines with GPUs alone")

    def _of_all(self, value):
        """Return the values of all processes, in a list."""
        found = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def _wait_for_all(self):
        dist.all_reduce(torch.zeros(1))     # of the hosts: no GPU is waited for

    def own(self, device):
        """Return the GPU whose number is this process's on its machine; a CPU is shared. Args: device: torch device."""
        if self.size == 1 or device.type != "cuda":
            return device
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def share(self, count, unit=1):
        """Return the rows of `count` that this process computes, a slice; shares are consecutive, whole units."""
        return self._shares(count, unit)[self.rank]

    def _shares(self, count, unit):
        units = -(-count // unit)
        bounds = [min(units * rank // self.size * unit, count) for rank in range(self.size + 1)]
        return [slice(*pair) for pair in zip(bounds, bounds[1:])]

    def gather(self, rows, count, unit=1):
        """Put all processes' shares (of `share`) together in order: (count, ...), without gradients."""
        if self.size == 1:
            return rows
        rows = rows.detach().contiguous()
        whole = rows.new_empty(count, *rows.shape[1:])
        parts = [whole[share] for share in self._shares(count, unit)]
        if len({len(part) for part in parts}) == 1:
            dist.all_gather(parts, rows)
            return whole
        parts[self.rank].copy_(rows)
        for rank, part in enumerate(parts):
            if len(part):
                dist.broadcast(part, src=rank)
        return whole

    def same(self, tensor):
        """Copy the first process's tensor into everyone's, which is returned."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def once(self, function):
        """Call a function on the first process alone; everyone gets what it returned there, tensors on the host."""
        if self.size == 1:
            return function()
        found = [function() if self.writes else None]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    @contextmanager
    def in_turn(self):
        """Run a block on the first process, then on the first of each machine, then on the others.

        For what makes files that are missing: the others find them.
        """
        turn, last = 2 if self.local_rank else min(self.rank, 1), 2 * (self.size > 1)
        for _ in range(turn):
            self._wait_for_all()
        yield
        for _ in range(last - turn):
            self._wait_for_all()

    def wrap(self, model):
        """Return the model so that every process calls it with its share of a batch and gets the output of the whole.

        Args: model: whose output is {name: {key: (B, ·) tensor}}. The first step tells which parameters get a gradient;
            those of all further steps must be the same.
        """
        if self.size == 1:
            return model
        buffers = [name for name, _ in model.named_buffers()]       # each process has its own
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, buffers)
        return WholeBatch(DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True), self)

    def neighbours(self, count):
        """Return the process group of `count` consecutive processes that this one is in; every process makes all."""
        groups = [dist.new_group(range(first, first + count), timeout=PATIENCE)
                  for first in range(0, self.size, count)]
        return groups[self.rank // count]

    def compare(self, when, **states):
        """Make sure that state dicts, by their name, are the same in all processes. Raises: UserError: they differ."""
        found = self._of_all({name: checksum(state) for name, state in states.items()}) if self.size > 1 else []
        for name in states:
            other = next((rank for rank, sums in enumerate(found) if sums[name] != found[0][name]), None)
            if other is not None:
                raise UserError(f"after {when} the {name} of process {other} differ from those of process 0; expected "
                                "the same to the bit. The same command resumes from the last state that was saved; if "
                                "it happens again, use GPUs of one kind and the same versions on all machines")

    def leave(self):
        """Wait until all processes have come here, at the end of their work."""
        if self.size > 1:
            self._wait_for_all()
            dist.destroy_process_group()


ALONE = Processes()


class WholeBatch(torch.nn.Module):
    """Called with a process's share of a batch, returns the output of all shares, in all processes.

    Gradients flow into a process's own rows, times the number of processes, since DistributedDataParallel averages
    those of the weights. Args: model: so wrapped; processes: `Processes`, whose shares are equal.
    """

    def __init__(self, model, processes):
        super().__init__()
        self.model, self.processes = model, processes

    def forward(self, *batch):
        """Return the model's {name: {key: (B, ·)}} with the rows of all processes."""
        return {name: {key: self._whole(rows) for key, rows in of.items()} for name, of in self.model(*batch).items()}

    def _whole(self, rows):
        size = self.processes.size
        own, others = self.processes.share(size * len(rows)), self.processes.gather(rows, size * len(rows))
        rows = rows.view_as(rows)
        if rows.requires_grad:
            rows.register_hook(lambda gradient: size * gradient)
        return torch.cat([others[:own.start], rows, others[own.stop:]])


def join_processes(device_type):
    """Join the processes that torchrun has started: `Processes`; `ALONE` if it has not, or has started one.

    Args: device_type: "cuda" or "cpu". Raises: UserError: this machine has fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or "RANK" not in os.environ:
        return ALONE
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device_type == "cuda" and here > torch.cuda.device_count():
        raise UserError(f"torchrun has started {here} processes on this machine, which has {torch.cuda.device_count()} "
                        "of the GPUs that they need; set --nproc_per_node to the number of GPUs, or DEVICE cpu")
    return Processes(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", 0)), device_type)


def checksum(state):
    """Compute the CRC-32 of all tensors of a state dict, at any depth, in its order."""
    found = 0
    for value in state.values():
        if isinstance(value, dict):
            found = zlib.crc32(str(checksum(value)).encode(), found)
        elif isinstance(value, torch.Tensor):
            found = zlib.crc32(value.detach().cpu().contiguous().numpy(), found)
    return found
