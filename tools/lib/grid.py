"""A grid of runs that differ in seed, trial or settings: which runs, their folders, and what is left to do in each."""
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from configs.defaults import as_dict, load_config
from configs.groups import may_change
from configs.identity import BASELINE
from data.pseudo_labels import FILE_NAMES, labels_digest, renumbered
from model.published import load_checkpoint
from report.run_files import GRID_FILE, read_run
from utils.checkpoint import load_array, save_json
from utils.errors import UserError
from utils.settings import flat

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_OPTION = {"SEED": "seed", "DATASET.TRIAL": "trial"}      # key -> its option is --seeds or --trials
TESTED = {"prepare": ("prepare_last", "prepare_best"), "clip": ("model_last", "model_best")}    # checkpoints by script
ALL_TESTED = TESTED["prepare"] + TESTED["clip"]
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._=-]+")


class Step(NamedTuple):
    """A script of a run."""

    title: str
    command: list               # words after "python"
    is_finished: Callable       # () -> whether the script has nothing left to do, by the files that it writes


@dataclass(frozen=True)
class Experiment:
    """One run of a grid: train_prepare.py, train_clip.py if one of its checkpoints is tested, tests, and the page."""

    name: str                   # of its folder: what makes it differ from the others
    folder: Path                # its OUTPUT_DIR
    varied: dict                # key -> value as written
    config_file: str | None
    words: tuple                # KEY VALUE words, OUTPUT_DIR last
    tested: tuple = ALL_TESTED      # checkpoints that are tested at the end; BASELINE is the model before training
    through: str | None = None  # script that is given the name of one of ours as its first word; None: ours is run

    @cached_property
    def config(self):
        """The configuration. Raises UserError: as `load_config`."""
        return load_config(self.config_file, self.words)

    def steps(self):
        """List the `Step`s of the run in their order; every test writes the run's page anew."""
        steps = [self._step("train_prepare.py", self._prepare_is_finished)]
        if set(self.tested) & set(TESTED["clip"]):
            steps.append(self._step("train_clip.py", self._clip_is_finished))
        for name in self.tested:
            path = [] if name == BASELINE else ["--resume_path", str(self._checkpoint(name))]
            steps.append(self._step("test.py", lambda name=name: any(self.results(name)), f"test of {name}",
                                    [*path, "TEST.MODE", "both"]))
        return steps

    def _step(self, script, is_finished, title="", words=()):
        file = ["--config_file", self.config_file] if self.config_file else []
        started = [self.through, Path(script).stem] if self.through else [str(REPOSITORY / script)]
        return Step(title or script, [*started, *file, *self.words, *words], is_finished)

    def _checkpoint(self, name):
        return self.folder / f"{name}.pth"

    def results(self, name):
        """List the metrics.json of a checkpoint's tests in all modes; not those of a former file of that name."""
        start = f"{name}-{self.config.TEST.PROTOCOL}-both-"
        return sorted({tested.path / "metrics.json" for tested in read_run(self.folder).tests
                       if tested.of == name and not tested.differs and tested.path.name.startswith(start)})

    def _prepare_is_finished(self):
        return (self._has_reached("prepare_last", self.config.PREPARE.EPOCHS)
                and all((self.folder / "pseudo_labels" / name).is_file() for name in FILE_NAMES.values()))

    def _clip_is_finished(self):
        folder = Path(self.config.PSEUDO_LABEL_DIR or self.folder / "pseudo_labels")
        files = {m: folder / name for m, name in FILE_NAMES.items()}
        if not all(path.is_file() for path in files.values()):
            return False
        labels = renumbered({m: load_array(path) for m, path in files.items()})
        return self._has_reached("model_last", self.config.FINETUNE.EPOCHS, pseudo_labels=labels_digest(labels))

    def _has_reached(self, name, epochs, **facts):
        """Tell whether a checkpoint is of the last epoch, these settings and facts; the script refuses other ones."""
        if not self._checkpoint(name).is_file():
            return False
        content = load_checkpoint(self._checkpoint(name))
        wanted, found = flat(as_dict(self.config)), flat(content.get("config", {}))
        same = all(wanted[key] == found[key] or may_change(key) or key.endswith(".EPOCHS")
                   for key in wanted.keys() & found.keys())
        return same and all(content.get(key) == value for key, value in {"epoch": epochs, **facts}.items())

    def note(self, error=""):
        """Write what the run is into its folder. Args: error: the sentence of a failure."""
        save_json(self.folder / GRID_FILE, {"name": self.name, "varied": self.varied, "error": error,
                                            "tested": self.tested, "settings": flat(as_dict(self.config))})


def make_grid(config_file, words, seeds=(), trials=(), varied=(), tested=ALL_TESTED, through=None):
    """List the runs of a grid, all checked: [`Experiment`].

    The folder of all runs is OUTPUT_DIR without the parts that {trial} is in; each run has a folder in it.

    Args: words: KEY VALUE words of all runs; seeds, trials: ints, () leaves the configuration's; varied: (key, values)
        pairs; tested, through: of `Experiment`.
    Raises: UserError: a key is unknown, a value is none that a run could have, or two runs would be the same.
    """
    config = load_config(config_file, words)
    axes = [*varied, *([("DATASET.TRIAL", trials)] if trials else [])]
    if seeds or not trials:
        axes.append(("SEED", seeds or [config.SEED]))
    keys = [key for key, _ in axes]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"the values of {twice[0]} are given twice; give them at once, those of SEED to --seeds and "
                        "those of DATASET.TRIAL to --trials")
    if "DATASET.TRIAL" in keys and config.DATASET.NAME != "regdb":
        raise UserError(f"--trials are the splits of RegDB; {config.DATASET.NAME} has one. Leave --trials out, or use "
                        "--seeds")
    parent, experiments, seen = grid_folder(config_file, words), [], {}
    for values in itertools.product(*(values for _, values in axes)):
        chosen = {key: str(value) for key, value in zip(keys, values)}
        name = NOT_IN_NAMES.sub("_", "-".join(OWN_OPTION.get(key, f"{key}=") + value for key, value in chosen.items()))
        experiments.append(Experiment(name, parent / name, chosen, config_file, (
            *words, *itertools.chain(*chosen.items()), "OUTPUT_DIR", str(parent / name)), tested, through))
        settings = repr({**flat(as_dict(experiments[-1].config)), "OUTPUT_DIR": ""})
        if settings in seen:
            raise UserError(f"the runs {seen[settings]} and {name} would have the same settings; give every value once")
        if name in seen.values():
            raise UserError(f"two runs would have the folder {name}, in which characters such as / are _; name their "
                            "files otherwise, or make two grids")
        seen[settings] = name
    return experiments


def grid_folder(config_file, words):
    """Return the folder of all runs: OUTPUT_DIR, up to the part that {trial} stands in."""
    return Path(os.path.commonpath([load_config(config_file, [*words, "DATASET.TRIAL", trial]).OUTPUT_DIR
                                    for trial in ("1", "2")]) or ".")
