"""Run the experiments of a grid: here, several at once, or as jobs of a cluster."""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.lib.grid import REPOSITORY
from utils.errors import Stopped, UserError

ERRORS = "stderr.txt"       # in the folder of a run: what its last script wrote to stderr
SECONDS = 0.2               # between looks at the scripts that run
MAX_REQUEUES = 100          # of a job whose time was over


class Worker:
    """Runs the scripts of one `Experiment` in turn, each in a process of its own; finished ones are skipped.

    Args: environment: variables that differ; quiet: leave out what the scripts print, which is in log.txt too.
    """

    def __init__(self, experiment, environment=None, quiet=False):
        self.experiment, self.quiet = experiment, quiet
        self.environment = {**os.environ, "PYTHONPATH": _import_path(), **(environment or {})}
        self.process, self.title = None, ""
        self.state, self.error, self.stopping = "running", "", False

    def advance(self):
        """Look at the script that runs; where it has ended, start the next one or note how the run ended.

        Returns: whether the run is still going.
        """
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return True
            self.process = None
            if code:
                return self._end(*self._failure(code))
        if self.stopping:
            return self._end("stopped")
        try:
            step = next((step for step in self.experiment.steps() if not step[2]()), None)
        except UserError as error:
            return self._end("failed", str(error))
        if step is None:
            return self._end("finished")
        if step[0] == self.title:
            return self._end("failed", f"{self.title} ended without an error and left its work undone; look at "
                             f"{self.experiment.folder / 'log.txt'}")
        self._start(*step[:2])
        return True

    def _start(self, title, command):
        self.title = title
        self.experiment.note("running")
        print(f"{self.experiment.name}: {title} starts", flush=True)
        with open(self.experiment.folder / ERRORS, "wb") as errors:
            # a session of its own: Ctrl-C in a terminal would reach it a second time, and a second one stops at once
            self.process = subprocess.Popen(
                [sys.executable, *command], env=self.environment, stderr=errors,
                stdout=subprocess.DEVNULL if self.quiet else None, start_new_session=True)

    def _failure(self, code):
        """Return state and sentence of a script that ended with an exit code (negative: by a signal)."""
        if code in (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT):
            return "stopped", ""
        path = self.experiment.folder / ERRORS
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        if code < 0:
            return "failed", f"{self.title} was ended by signal {-code}; was memory exhausted?"
        said = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        return "failed", f"{self.title}: {said}" + ("" if code == 2 else f" (see {path})")

    def _end(self, state, error=""):
        self.state, self.error = state, error
        self.experiment.note(state, error)
        print(f"{self.experiment.name}: {state}{f', {error}' if error else ''}", flush=True)
        return False

    def send_signal(self, number):
        """Pass a signal on to the script that runs, if one does; no other is started."""
        self.stopping = True
        if self.process is not None:
            self.process.send_signal(number)


def run_here(experiments, at_once=1):
    """Run experiments on this machine, at_once at a time; a failed one does not stop the others.

    Returns: [(name, sentence)] of the failed ones.
    Raises: Stopped: SIGTERM or Ctrl-C came; it was passed on to the scripts, and they have ended.
    """
    waiting, working, failed, stopped = list(experiments), [], [], []
    for experiment in waiting:
        experiment.note("waiting")

    def pass_on(number, _):
        stopped.append(number)
        for worker in working:
            worker.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    places = list(range(at_once))
    try:
        while working or (waiting and not stopped):
            while waiting and places and not stopped:
                worker = Worker(waiting.pop(0), _share(places[0], at_once), quiet=at_once > 1)
                worker.place = places.pop(0)
                working.append(worker)
            for worker in list(working):
                if not worker.advance():
                    working.remove(worker)
                    places.append(worker.place)
                    failed += [(worker.experiment.name, worker.error)] if worker.state == "failed" else []
            time.sleep(SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise Stopped("stopped; the same command resumes the grid", stopped[0])
    return failed


def _import_path():
    """Put the repository before what PYTHONPATH names."""
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])


def _share(place, at_once):
    """Choose the environment variables by which runs share processors and GPUs. Args: place: 0 to at_once - 1."""
    if at_once == 1:
        return {}
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = int(os.environ.get("OMP_NUM_THREADS") or here)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = shown.split(",") if shown else [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    return {"OMP_NUM_THREADS": str(max(1, cores // at_once)),
            **({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if len(gpus) > 1 else {})}


class Job:
    """One `Experiment` as a job of submitit. When its time is over, it is queued again and resumes."""

    def __init__(self, experiment):
        self.experiment = experiment
        self.worker = None

    def __call__(self):
        """Run the experiment: its state and sentence."""
        self.worker = Worker(self.experiment)
        while self.worker.advance():
            time.sleep(SECONDS)
        return self.worker.state, self.worker.error

    def checkpoint(self):
        """Stop the script that runs, which saves its state, and return what is to be queued again."""
        from submitit.helpers import DelayedSubmission

        process = self.worker and self.worker.process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            # not process.wait(): this runs as a signal handler, perhaps while the process is being looked at
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        self.experiment.note("stopped")
        return DelayedSubmission(Job(self.experiment))


def submit(experiments, executor):
    """Queue a job for each experiment: the jobs. Args: executor: of submitit, with its parameters set."""
    for experiment in experiments:
        experiment.note("waiting")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _import_path()       # jobs inherit it
    try:
        return [executor.submit(Job(experiment)) for experiment in experiments]
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def slurm_executor(folder, name, partition, gpus, cpus, hours):
    """Make submitit's executor for Slurm.

    Args: folder: of its files; name: of the jobs; partition: None for the default one; gpus, cpus: of each job;
        hours: of each job until it is queued again.
    Raises: UserError: submitit or Slurm is missing.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--cluster slurm needs the package submitit, which is missing; install requirements.txt")
    if shutil.which("sbatch") is None:
        raise UserError("--cluster slurm needs the command sbatch, and this machine has none; run it where Slurm is "
                        "installed, or leave --cluster out to run here")
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(name=name, timeout_min=int(60 * hours), gpus_per_node=gpus, nodes=1, tasks_per_node=1,
                               cpus_per_task=cpus, **({"slurm_partition": partition} if partition else {}))
    return executor
