"""What several processes tell one another beside their results: that they live, and which of them speaks of a failure.

They meet at torchrun's key-value store. A process that has died or failed ends the others, whatever they wait for:

    LOST seconds after the last sign of life of another process, or a moment after another has reported its end,
    a thread ends this process with exit code 2.

So a collective operation may take as long as it needs (one process clusters while the others wait), and none waits
for ever.
"""
import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

BEAT = 1.0          # seconds between signs of life
LOST = 25.0         # seconds without one after which a process counts as dead; torchrun's own patience is 30
GRACE = 3.0         # seconds in which a process may report the failure that another has reported too
REACHED = timedelta(seconds=20)     # for an answer of the store
GONE = ("error: another process of this run has ended or cannot be reached; look at what was said before, and run the "
        "same command again: it resumes from the last state that was saved")


def connect():
    """Connect to the key-value store of the processes that torchrun has started: torchrun's, else that of process 0."""
    variables = os.environ
    is_host = variables["RANK"] == "0" and variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(variables["MASTER_ADDR"], int(variables["MASTER_PORT"]), is_master=is_host, timeout=REACHED,
                          wait_for_workers=False, multi_tenant=True)
    return dist.PrefixStore(f"cclnet/{variables.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def say_once(line):
    """Report the end of this process, and print a line on stderr if it is the first to report one.

    Returns after the other processes have reported theirs too, or a few seconds later: torchrun ends those that are
    left with the first.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        store, number = connect(), None
        number = store.add("ended", 1)
    except RuntimeError:        # nobody there: it cannot be known who speaks
        number = 1
    if number == 1:
        print(line, file=sys.stderr, flush=True)
    try:
        end = time.monotonic() + BEAT + 2 * GRACE
        while time.monotonic() < end and store.add("ended", 0) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.05)
    except (RuntimeError, NameError):
        pass


class Watch:
    """The thread that shows that this process lives and ends it when another has ended.

    Args: rank: of this process; size: number of processes.
    """

    def __init__(self, rank, size):
        self.rank, self.keys = rank, [f"beat/{r}" for r in range(size)]
        self._store, self._count, self._stopped = connect(), 0, threading.Event()
        self._seen = {}             # key -> last sign of life, when it was first seen
        self._looked = time.monotonic()
        self._beat()
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self):
        """End the watch; the other processes may end from now on."""
        self._stopped.set()

    def _beat(self):
        self._count += 1
        self._store.set(self.keys[self.rank], str(self._count))

    def _run(self):
        while not self._stopped.wait(BEAT):
            try:
                self._beat()
                others_ended, is_lost = self._store.add("ended", 0), self._is_one_lost()
            except RuntimeError:        # the store, and with it torchrun or process 0, is gone
                others_ended, is_lost = False, True
            if others_ended:
                self._stopped.wait(GRACE)
            if (others_ended or is_lost) and not self._stopped.is_set():
                say_once(GONE)
                os._exit(2)             # the main thread may wait in a collective operation

    def _is_one_lost(self):
        """Tell whether a process that has joined has shown no sign of life for LOST seconds."""
        now = time.monotonic()
        if now - self._looked > LOST / 2:       # this process itself was stopped for a while
            self._seen = {}
        self._looked = now
        joined = [key for key in self.keys if key in self._seen or self._store.check([key])]
        for key, beat in zip(joined, self._store.multi_get(joined)):
            if self._seen.get(key, (None,))[0] != beat:
                self._seen[key] = beat, now
        return any(now - since > LOST for _, since in self._seen.values())
