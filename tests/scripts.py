"""The three scripts on miniature data, called in this process as the command line calls them."""
import contextlib
import importlib.util
import io
import runpy
import sys
from pathlib import Path

import pytest

from utils.errors import exit_on_user_error

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = {"DEVICE": "cpu", "DATASET.CHECK_COUNTS": "False", "INPUT.HEIGHT": "32", "INPUT.WIDTH": "16", "INPUT.PAD": "2",
         "CLUSTER.K1": "8", "CLUSTER.K2": "3", "CLUSTER.MIN_SAMPLES": "2", "SAMPLER.CLUSTERS": "2",
         "SAMPLER.INSTANCES": "2", "METHOD.CROSS_EPOCH": "2", "OPTIM.WARMUP_EPOCHS": "2", "PROMPT.BATCH_SIZE": "8",
         "PREPARE.EPOCHS": "1", "PROMPT.EPOCHS": "1", "FINETUNE.EPOCHS": "1", "TEST.TRIALS": "2"}


def load(name):
    """A script of the repository's root as a module ("test" is a package of Python itself)."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", REPOSITORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(**changes):
    """KEY VALUE words of a small run; in the names of changes "__" stands for a dot."""
    words = {**SMALL, **{key.replace("__", "."): str(value) for key, value in changes.items()}}
    return [word for pair in words.items() for word in pair]


def call(module, arguments):
    """A script's exit code."""
    sys.argv = [f"{module.__name__.removesuffix('_script')}.py", *map(str, arguments)]
    try:
        exit_on_user_error(module.main)
    except SystemExit as end:
        return end.code
    return 0


def without_report(monkeypatch):
    """Leave out the page of pictures at the end of a run: it takes longer than a miniature run."""
    monkeypatch.setattr("report.write.save_report", lambda *_, **__: None)


class InThisProcess:
    """Stands in for `subprocess.Popen`: runs a script here, at once, without pages of pictures, which take long."""

    started = []

    def __init__(self, words, stderr, **_):
        words = words[1:]
        if words[0] == "-C":        # git, which says of which commit a run is
            raise OSError("no git here")
        self.started.append(Path(words[0]).stem)
        errors, self.returncode = io.StringIO(), 0
        with contextlib.redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.setattr("report.write.save_report", lambda *_, **__: None)
            try:
                runpy.run_path(words[0], run_name="__main__")
            except SystemExit as end:
                self.returncode = end.code or 0
        stderr.write(errors.getvalue().encode())

    def poll(self):
        return self.returncode
