"""What several processes tell one another beside their results: that they live, and which of them speaks of a failure.

They meet at torchrun's key-value store. A process that has died or failed ends the others, whatever they wait for: a
thread ends this process with exit code 2

    LOST seconds after the last sign of life of another process, or of the store, or
    a moment after another process has reported its end.

So a collective operation may take as long as it needs (one process clusters while the others wait), and none waits
for ever.
"""
import contextlib
import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

BEAT = 1            # seconds between signs of life
LOST = 25           # seconds without one after which a process counts as dead; torchrun's own patience is 30
GRACE = 3           # seconds in which a process may report the failure that another has reported too
JOINING = timedelta(minutes=5)      # until every process has started
ANSWER = timedelta(seconds=5)       # of a store at the end of a run
GONE = ("error: another process of this run has ended or cannot be reached; look at what was said before, and run the "
        "same command again: it resumes from the last state that was saved")


def connect(timeout):
    """Connect to the key-value store of the processes that torchrun has started: torchrun's, else that of process 0."""
    variables = os.environ
    is_host = variables["RANK"] == "0" and variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(variables["MASTER_ADDR"], int(variables["MASTER_PORT"]), is_master=is_host, timeout=timeout,
                          wait_for_workers=False, multi_tenant=True)
    return dist.PrefixStore(f"cclnet/{variables.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def say_once(line):
    """Report the end of this process, and print a line on stderr if it is the first to report one.

    Returns the store; None if it is gone, and it cannot be known who speaks.
    """
    try:
        store = connect(ANSWER)
        is_first = store.add(f"ended/{os.environ['RANK']}", 1) == 1 and store.add("ended", 1) == 1
    except RuntimeError:
        store, is_first = None, True
    if is_first:
        print(line, file=sys.stderr, flush=True)
    return store


def wait_for_ends(store):
    """Wait a few seconds until all processes have reported their end; process 0 leaves last.

    It may hold the store at which the others ask who speaks. Torchrun would stop those that are left when the first
    has ended, before they have an exit code of their own. Args: store: what `say_once` returned.
    """
    end = time.monotonic() + BEAT + 2 * GRACE
    with contextlib.suppress(RuntimeError):
        while store is not None and time.monotonic() < end and store.add("ended", 0) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.05)
        time.sleep(0.5 * (os.environ["RANK"] == "0"))


def end_together(line):
    """Report the end of this process as `say_once` does, and wait for the others'; for the main thread."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(RuntimeError):     # the store is gone
        connect(ANSWER).set(f"ends/{os.environ['RANK']}", "")
    wait_for_ends(say_once(line))


class Watch:
    """The threads that show that this process lives and end it when another has ended.

    Args: rank: of this process; size: number of processes.
    """

    def __init__(self, rank, size):
        self._keys = [f"beat/{r}" for r in range(size)]
        self._own, self._store, self._stopped = self._keys[rank], connect(JOINING), threading.Event()
        self._looks = 0             # at the others, so far
        self._seen = {}             # key -> last sign of life, the look at which it was first seen
        self._store.set(self._own, "0")
        for run in (self._watch_others, self._watch_store):
            threading.Thread(target=run, daemon=True).start()

    def stop(self):
        """End the watch; the other processes may end from now on."""
        self._stopped.set()

    def _watch_others(self):
        while not self._stopped.wait(BEAT):
            try:
                if self._store.check([self._own.replace("beat", "ends")]):
                    self.stop()         # the main thread ends this process, with an exit code of its own
                self._store.set(self._own, str(self._looks))
                others_ended, is_lost = self._store.add("ended", 0), self._is_one_lost()
            except RuntimeError:        # the store, and with it torchrun or process 0, is gone
                others_ended, is_lost = False, True
            if others_ended:
                self._stopped.wait(GRACE)
            if others_ended or is_lost:
                self._end()
            self._looks += 1

    def _is_one_lost(self):
        """Tell whether a process that has joined has shown no sign of life for long."""
        joined = [key for key in self._keys if key in self._seen or self._store.check([key])]
        for key, beat in zip(joined, self._store.multi_get(joined)):
            if self._seen.get(key, (None,))[0] != beat:
                self._seen[key] = beat, self._looks
        return any(self._looks - look > LOST / BEAT for _, look in self._seen.values())

    def _watch_store(self):
        """End this process when its other thread gets no answer: the store's machine may have gone without a word."""
        waited, looks = 0, 0
        while not self._stopped.wait(BEAT):
            waited, looks = waited + 1 if looks == self._looks else 0, self._looks
            if waited > LOST / BEAT:
                self._end()

    def _end(self):
        if not self._stopped.is_set():
            wait_for_ends(say_once(GONE))
            os._exit(2)             # the main thread may wait in a collective operation
