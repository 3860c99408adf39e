"""A grid of runs that differ in seed, trial or settings: which runs, their folders, and what of each is finished."""
import itertools
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from configs.defaults import as_dict, load_config
from data.pseudo_labels import FILE_NAMES
from model.published import load_checkpoint
from processor.run.folder import MAY_CHANGE
from utils.checkpoint import save_json
from utils.errors import UserError
from utils.settings import flat

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = "experiment.json"      # in the folder of a run: its place in the grid and its state
STATES = ("waiting", "running", "stopped", "failed", "finished")
OWN_OPTION = {"SEED": "seed", "DATASET.TRIAL": "trial"}      # key -> its option is --seeds or --trials
BASELINE = "baseline_clip"
TESTED = ("prepare_last", "prepare_best", "model_last", "model_best")       # checkpoints that are tested at the end
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._=-]+")


@dataclass(frozen=True)
class Experiment:
    """One run of a grid."""

    name: str                   # of its folder: what makes it differ from the others
    folder: Path                # its OUTPUT_DIR
    varied: dict                # key -> value as written
    config_file: str | None
    words: tuple                # KEY VALUE words, OUTPUT_DIR last
    tested: tuple = TESTED      # checkpoints that are tested at the end; BASELINE is CLIP before training

    @cached_property
    def config(self):
        """The configuration. Raises UserError: as `load_config`."""
        return load_config(self.config_file, self.words)

    @property
    def arguments(self):
        """The words of a script's command line that make this run."""
        return [*(["--config_file", self.config_file] if self.config_file else []), *self.words]

    def steps(self):
        """List the scripts of the run in their order: [(title, words after "python", finished)].

        finished: a function that tells whether the script has nothing left to do.
        """
        return [("train_prepare.py", [str(REPOSITORY / "train_prepare.py"), *self.arguments], self.prepare_is_finished),
                ("train_clip.py", [str(REPOSITORY / "train_clip.py"), *self.arguments], self.clip_is_finished),
                *((f"test of {name}", self._test_command(name), lambda name=name: self.test_is_finished(name))
                  for name in self.tested),
                ("page", ["-m", "report", str(self.folder)], self.page_is_finished)]

    def _test_command(self, name):
        path = [] if name == BASELINE else ["--resume_path", str(self.folder / f"{name}.pth")]
        return [str(REPOSITORY / "test.py"), *path, *self.arguments, "TEST.MODE", "both"]

    def prepare_is_finished(self):
        """Tell whether train_prepare.py ran to its last epoch and left its pseudo labels."""
        return (self._reached("prepare_last.pth", self.config.PREPARE.EPOCHS)
                and all((self.folder / "pseudo_labels" / name).is_file() for name in FILE_NAMES.values()))

    def clip_is_finished(self):
        """Tell whether train_clip.py ran to its last epoch, after train_prepare.py."""
        return (self._reached("model_last.pth", self.config.FINETUNE.EPOCHS)
                and not _is_older(self.folder / "model_last.pth", self.folder / "prepare_last.pth"))

    def test_is_finished(self, name):
        """Tell whether every mode of a checkpoint was tested since it was written."""
        results = results_file(self.folder, name, self.config.TEST.PROTOCOL)
        return results.is_file() and not _is_older(results, self.folder / f"{name}.pth")

    def page_is_finished(self):
        """Tell whether the run's page is as new as its tests."""
        page = self.folder / "report.html"
        return page.is_file() and not any(_is_older(page, results_file(self.folder, name, self.config.TEST.PROTOCOL))
                                          for name in self.tested)

    def _reached(self, name, epochs):
        """Tell whether a checkpoint is of the last epoch and of these settings; the script refuses other ones."""
        path = self.folder / name
        if not path.is_file():
            return False
        content = load_checkpoint(path)
        wanted, found = flat(as_dict(self.config)), flat(content.get("config", {}))
        differs = [key for key in wanted.keys() & found.keys() if wanted[key] != found[key]
                   and not key.startswith(MAY_CHANGE) and not key.endswith(".EPOCHS")]
        return not differs and content.get("epoch") == epochs

    def note(self, state, error=""):
        """Write the state of the run, one of STATES, into its folder. Args: error: the sentence of a failure."""
        save_json(self.folder / RECORD, {"name": self.name, "varied": self.varied, "state": state, "error": error,
                                         "tested": self.tested, "settings": flat(as_dict(self.config))})


def make_grid(config_file, words, seeds=(), trials=(), varied=(), tested=TESTED):
    """List the runs of a grid, all checked: [`Experiment`].

    The folder of all runs is OUTPUT_DIR without the parts that {trial} is in; each run has a folder in it.

    Args: words: KEY VALUE words of all runs; seeds, trials: ints, () leaves the configuration's; varied: (key, values)
        pairs; tested: of `Experiment`.
    Raises: UserError: a key is unknown, a value is none that a run could have, or two runs would be the same.
    """
    for key, _ in varied:
        if key in OWN_OPTION or key == "OUTPUT_DIR":
            raise UserError(f"--vary {key} is not possible: " + (
                f"give its values to --{OWN_OPTION[key]}s" if key in OWN_OPTION else
                "every run has a folder of its own in OUTPUT_DIR; set that once, without --vary"))
    config = load_config(config_file, words)
    if trials and config.DATASET.NAME != "regdb":
        raise UserError(f"--trials are the splits of RegDB; {config.DATASET.NAME} has one. Leave --trials out, or use "
                        "--seeds")
    axes = [*varied, *([("DATASET.TRIAL", trials)] if trials else [])]
    if seeds or not trials:
        axes.append(("SEED", seeds or [config.SEED]))
    parent, experiments = grid_folder(config_file, words), []
    for values in itertools.product(*(values for _, values in axes)):
        chosen = {key: str(value) for (key, _), value in zip(axes, values)}
        name = "-".join(_label(key, value) for key, value in chosen.items())
        pairs = [word for pair in chosen.items() for word in pair]
        experiments.append(Experiment(name, parent / name, chosen, config_file,
                                      (*words, *pairs, "OUTPUT_DIR", str(parent / name)), tested))
    _refuse_twins(experiments)
    return experiments


def grid_folder(config_file, words):
    """Return the folder of all runs: OUTPUT_DIR, up to the part that {trial} stands in."""
    return Path(os.path.commonpath([load_config(config_file, [*words, "DATASET.TRIAL", trial]).OUTPUT_DIR
                                    for trial in ("1", "2")]) or ".")


def results_file(folder, checkpoint, protocol):
    """Return the path of the results that test.py writes for a checkpoint's name with TEST.MODE both."""
    return Path(folder) / "tests" / f"{checkpoint}-{protocol}-both" / "metrics.json"


def read_record(folder):
    """Read what `Experiment.note` wrote into a folder; {} without the file. Raises UserError: it is damaged."""
    path = Path(folder) / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
        if record["state"] not in STATES or not isinstance(record["settings"], dict):
            raise ValueError("no state of a run")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected what tools/experiments.py writes. Remove it and "
                        "run the grid again")


def _label(key, value):
    """Name a value in a folder's name: "seed1", "trial3", "CLUSTER.EPS=0.5"."""
    return NOT_IN_NAMES.sub("_", f"{OWN_OPTION[key]}{value}" if key in OWN_OPTION else f"{key}={value}")


def _refuse_twins(experiments):
    """Refuse runs with the same settings or the same folder. Raises UserError."""
    seen = {}
    for experiment in experiments:
        settings = {key: value for key, value in flat(as_dict(experiment.config)).items() if key != "OUTPUT_DIR"}
        for what in (repr(settings), experiment.name):
            if what in seen:
                raise UserError(f"the runs {seen[what]} and {experiment.name} would have the same "
                                f"{'folder' if what == experiment.name else 'settings'}; give every value once")
        seen |= {repr(settings): experiment.name, experiment.name: experiment.name}


def _is_older(path, than):
    """Tell whether a file is older than another one that may be missing."""
    return Path(than).is_file() and path.stat().st_mtime < Path(than).stat().st_mtime
