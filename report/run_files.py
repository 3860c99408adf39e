"""Reads what a run has written into its folder, for the page."""
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import yaml

from configs.defaults import with_defaults
from configs.identity import BASELINE, differences
from utils.checkpoint import file_digest
from utils.errors import UserError, quoted
from utils.settings import flat

CONTENT_FOLDER = "report_data"
GRID_FILE = "experiment.json"
MODEL_NAMES = {"prepare_last": "prepare", "prepare_best": "prepare", "model_last": "finetune", "model_best": "finetune"}
# Numbers of a test, fractions of 1 -> how they are written.
NUMBERS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "rank20": "Rank-20", "mAP": "mAP", "mINP": "mINP"}


class Tested(NamedTuple):
    """A result of test.py on the run's own weights. `differs`: in what it was done otherwise than in the run, or ""."""

    of: str         # key of MODEL_NAMES, BASELINE, or the name of another checkpoint that lies in the folder
    differs: str
    record: dict    # of metrics.json
    path: Path      # of its folder


@dataclass(frozen=True)
class RunFiles:
    """Holds what the files of a run's folder say."""

    folder: Path
    config: dict    # config.yml
    epochs: list    # metrics.jsonl, a dict per epoch of every stage
    about: dict     # script -> report_data/run-SCRIPT.json: where and how it ran, its settings, digests of its inputs
    grid: dict      # experiment.json, what a grid noted of the run: {"varied", "tested", "error", "settings"}

    @property
    def settings(self):
        """Return config.yml as a flat dict, in which keys that it does not name have their defaults; {} without it."""
        stored = flat(self.config) or self.grid.get("settings")
        return with_defaults(stored) if stored else {}

    @property
    def varied(self):
        """Return the keys that the run's grid varied."""
        return self.grid.get("varied", {}).keys()

    def settings_of(self, stage):
        """Return the settings that a stage was trained with, as `settings`. Args: stage: "prepare" or "finetune"."""
        stored = self.about.get("train_prepare" if stage == "prepare" else "train_clip", {}).get("config")
        return with_defaults(flat(stored)) if stored else self.settings

    def known(self, key):
        """Return a fact of the last script that says it, such as "method", or the digest "images"; "" for none."""
        return next((about[key] for about in reversed(self.about.values()) if about.get(key)), "")

    @cached_property
    def contents(self):
        """What `report.content` made, in the order in which it is looked at: a test's, then the stages'.

        A run's test is that of its last checkpoint, by the folder that holds most modes.
        """
        last = "model_last" if any(row["stage"] == "finetune" for row in self.epochs) else "prepare_last"
        tests = [tested.path for tested in self.tests if tested.of == last and not tested.differs]
        places = [(self.folder, "test"), *((path, "test") for path in sorted(tests, key=tests.count)[-1:]),
                  (self.folder, "finetune"), (self.folder, "prepare")]
        paths = dict.fromkeys(folder / CONTENT_FOLDER / f"{name}.json" for folder, name in places)
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    @property
    def published_as(self):
        """Return DATASET.NAME where others' figures are of the same images; "" for own people in such a layout."""
        return self.settings.get("DATASET.NAME", "") if self.settings.get("DATASET.CHECK_COUNTS") else ""

    @cached_property
    def tests(self):
        """The results that are of this run: [`Tested`].

        Those are of its checkpoints as they are now, and of the weights that its training began with. A test's own
        folder holds its own, and those of the untrained model that were tested alike.
        """
        own, here = _records(self.folder / "metrics.json"), self.folder.resolve()
        found = [Tested(Path(record["checkpoint"]).stem, "", record, self.folder) for record in own]
        if own:
            identity = own[0].get("identity")
            found += [Tested(BASELINE, "", record, path) for path, record in (_below(here.parent) if identity else ())
                      if path != here and is_untrained(record)
                      and not differences(record["identity"], identity, identity["images"])]
            return found
        for path, record in _below(self.folder / "tests"):
            if of := self._owner(record):
                settings = self.settings_of(MODEL_NAMES.get(of))
                differs = differences(record["identity"], settings, self.known("images"))
                found.append(Tested(of, differs, record, path))
        return found

    def lacks_baseline(self, tested, modes):
        """Tell whether the page would compare a test with the untrained model's, and cannot in one of its modes.

        Args: tested: `identity` of the test, of a checkpoint of this run.
        """
        known = {other.record["mode"] for other in self.tests if other.of == BASELINE and not other.differs
                 and other.record["identity"]["TEST.PROTOCOL"] == tested["TEST.PROTOCOL"]}
        return bool(modes - known) and self.known("weights") and not differences(
            tested, self.settings, self.known("images"))

    def _owner(self, record):
        """Return which of the run's weights a record is of, by their digest, as `Tested.of`; None for others."""
        digest = record["identity"]["checkpoint"]
        if is_untrained(record):
            return BASELINE if self.known("weights") in ("", digest) else None
        path = self.folder / Path(record["checkpoint"]).name
        return path.stem if not path.is_file() or file_digest(path) == digest else None     # logs may be kept alone


def read_run(folder):
    """Read a run's folder: `RunFiles`, which holds nothing of files that are not there."""
    folder = Path(folder)
    about = {script: _read(folder / CONTENT_FOLDER / f"run-{script}.json")
             for script in ("train_prepare", "train_clip", "test")}
    return RunFiles(folder, _read(folder / "config.yml", yaml.safe_load), _read(
        folder / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()]) or [],
        {script: facts for script, facts in about.items() if facts}, _read(folder / GRID_FILE))


def read_finished(folders):
    """Read the folders of runs that have something to show, each once: [`RunFiles`]. Raises: UserError: one has not."""
    runs = [read_run(folder) for folder in {Path(each).resolve(): each for each in folders}.values()]
    for run in runs:
        if not (run.epochs or run.tests or run.contents):
            raise UserError(f"{quoted(run.folder)} holds no run (no metrics.jsonl, metrics.json or {CONTENT_FOLDER}); "
                            "expected the OUTPUT_DIR of train_prepare.py, train_clip.py or test.py after an epoch or "
                            "a test")
    return runs


def is_untrained(record):
    """Tell whether a metrics.json, or a record of it, is of a model before any training."""
    return record.get("selection") == "no training"


def _below(tests):
    """List the results in the folders of tests/ that say what they are of: [(folder, record)]."""
    return [(path.parent, record) for path in sorted(tests.glob("*/metrics.json")) for record in _records(path)
            if "identity" in record]


def _records(path):
    """List the records of a metrics.json, one for each mode. Raises: UserError: a number is no fraction of 1."""
    content = _read(path)
    records = content.get("results", [content] if content else [])
    for name, value in ((name, record.get(name)) for record in records for name in NUMBERS):
        if not (isinstance(value, (int, float)) and 0 <= value <= 1):       # nor NaN
            raise UserError(f"{quoted(path)} holds {name} {value!r}; expected a number from 0 to 1, as test.py writes "
                            "it. Test again")
    return records


def _read(path, parse=json.loads):
    """Read a text file, {} where it is not there."""
    return parse(path.read_text(encoding="utf-8")) if path.exists() else {}
