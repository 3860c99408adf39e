"""Run the experiments of a grid: here, several at once, or as jobs of a cluster."""
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import torch

from tools.lib.grid import REPOSITORY
from utils.errors import UserError, shown, stops_on_signals

ERRORS = "stderr.txt"       # in the folder of a run: what its last script wrote to stderr
SECONDS = 0.2               # between looks at the scripts that run
MAX_REQUEUES = 100          # of a job whose time was over


def work(experiment, environment=(), quiet=False):
    """Run the scripts of an `Experiment` in turn, each in a process of its own; finished ones are skipped.

    A generator: while a script runs, each step yields its process. Closing the generator ends the process.

    Args: environment: variables that differ; quiet: leave out what the scripts print, which is in log.txt too.
    Returns: the sentence of a failure, kept in the run's folder too; "" if all is finished.
    """
    experiment.note()
    error = ""
    try:
        for step in experiment.steps():
            if not step.is_finished():
                print(f"{experiment.name}: {step.title} starts", flush=True)
                yield from _script(step, experiment.folder / ERRORS, {**os.environ, **dict(environment)}, quiet)
                if not step.is_finished():
                    raise UserError(f"{step.title} ended without an error and left its work undone; look at "
                                    f"{experiment.folder / 'log.txt'}")
    except UserError as found:
        error = str(found)
    experiment.note(error)
    print(shown(f"{experiment.name}: {f'failed, {error}' if error else 'finished'}"), flush=True)
    return error


def _script(step, errors, environment, quiet):
    """Run one script, as `work`. Args: errors: path of its stderr. Raises UserError: it failed."""
    with open(errors, "wb") as file:
        # a session of its own: Ctrl-C in a terminal reaches this process alone, which ends the script
        process = subprocess.Popen([sys.executable, *step.command], env=environment, stderr=file,
                                   stdout=subprocess.DEVNULL if quiet else None, start_new_session=True)
    try:
        while process.poll() is None:
            yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    code = process.returncode
    if code < 0:
        raise UserError(f"{step.title} was ended by signal {-code}; was memory exhausted?")
    if code:
        lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
        said = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        raise UserError(f"{step.title}: {said}" + ("" if code == 2 else f" (see {errors})"))


def run_here(experiments, at_once=1):
    """Run experiments on this machine, at_once at a time; a failed one does not stop the others.

    Returns: [(name, sentence)] of the failed ones.
    Raises: Stopped: a signal came; the scripts have ended.
    """
    waiting, working, failed = list(experiments), {}, []
    with stops_on_signals(lambda: "the same command resumes the grid"):
        try:
            while waiting or working:
                for place in range(at_once):
                    if place not in working and waiting:
                        experiment = waiting.pop(0)
                        working[place] = experiment, work(experiment, _share(place, at_once), quiet=at_once > 1)
                for place, (experiment, running) in list(working.items()):
                    try:
                        next(running)
                    except StopIteration as end:
                        del working[place]
                        failed += [(experiment.name, end.value)] if end.value else []
                time.sleep(SECONDS)
        finally:
            for _, running in working.values():
                running.close()
    return failed


def _share(place, at_once):
    """Choose the environment variables by which runs share processors and GPUs. Args: place: 0 to at_once - 1."""
    if at_once == 1:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // at_once)),
            **({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if len(gpus) > 1 else {})}


class Job:
    """One `Experiment` as a job of submitit. When its time is over, it is queued again and resumes."""

    def __init__(self, experiment):
        self.experiment, self.process = experiment, None

    def __call__(self):
        """Run the experiment: the sentence of its failure, or ""."""
        running = work(self.experiment)
        while True:
            try:
                self.process = next(running)
            except StopIteration as end:
                return end.value
            time.sleep(SECONDS)

    def checkpoint(self):
        """End the script that runs, whose last epoch is saved, and return what is to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            # not process.wait(): this runs as a signal handler, perhaps while the process is being looked at
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Job(self.experiment))


def slurm_executor(folder, name, partition, gpus, cpus, hours):
    """Make submitit's executor for Slurm.

    Args: folder: of its files; name: of the jobs; partition: None for the default one; gpus, cpus: of each job;
        hours: of each job until it is queued again.
    Raises: UserError: Slurm is missing.
    """
    import submitit

    if shutil.which("sbatch") is None:
        raise UserError("--cluster slurm needs the command sbatch, and this machine has none; run it where Slurm is "
                        "installed, or leave --cluster out to run here")
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(name=name, timeout_min=int(60 * hours), gpus_per_node=gpus, nodes=1, tasks_per_node=1,
                               cpus_per_task=cpus,
                               slurm_setup=[f"export PYTHONPATH={shlex.quote(str(REPOSITORY))}:$PYTHONPATH"],
                               **({"slurm_partition": partition} if partition else {}))
    return executor
