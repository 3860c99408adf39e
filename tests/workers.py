"""Several processes that act as torchrun's, forked from a server that has imported everything: they start fast."""
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
import scripts

_context = multiprocessing.get_context("forkserver")
# open_clip too: what loads weights imports it when it is called, which takes longer than a miniature run
_context.set_forkserver_preload(["tests.workers", "processor.setup", "tests.tiny", "tests.shares", "open_clip",
                                 "report.write", "torch.utils.tensorboard"])


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Workers:
    """N processes that call a function; what they print is in files FOLDER/RANK.out.

    Args: size: N; folder: made if missing; function: importable; arguments: of it.
    """

    def __init__(self, size, folder, function, *arguments):
        self.folder, port = Path(folder), free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes = [_context.Process(target=_work, args=(rank, size, port, self.folder, function, arguments))
                          for rank in range(size)]
        for rank, process in enumerate(self.processes):
            (self.folder / f"{rank}.out").unlink(missing_ok=True)
            process.start()

    def codes(self, seconds=300):
        """Wait for all; their exit codes, minus the signal's number where one ended it; None where it lives still."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def said(self):
        """What each process has printed."""
        files = [self.folder / f"{rank}.out" for rank in range(len(self.processes))]
        return [file.read_text() if file.exists() else "" for file in files]


def _work(rank, size, port, folder, function, arguments):
    output = os.open(folder / f"{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    if size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch
    torch.set_num_threads(1)
    try:
        code = function(*arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


def script(name, words):
    """Call one of the three scripts without the page at its end: its exit code."""
    scripts.without_report(pytest.MonkeyPatch())
    return scripts.call(scripts.load(name), words)
