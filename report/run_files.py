"""Reads what a run has written into its folder, for the page."""
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import yaml

from configs.defaults import with_defaults
from configs.identity import BASELINE, DECIDING, differences
from utils.checkpoint import file_digest
from utils.errors import UserError, quoted
from utils.settings import flat

CONTENT_FOLDER = "report_data"
GRID_FILE = "experiment.json"
SCRIPTS = ("train_prepare", "train_clip", "test")
WRITERS = "train_prepare.py, train_clip.py or test.py"
MODEL_NAMES = {"prepare_last": "prepare", "prepare_best": "prepare", "model_last": "finetune", "model_best": "finetune"}
RATES = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")      # numbers of a test, as fractions of 1


class Tested(NamedTuple):
    """A result of test.py on the run's own weights. `differs`: in what it was done otherwise than in the run, or ""."""

    folder: str     # below tests/
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
        """Return the digest of an input of the last training script, "images" or "weights"; "" where none says it."""
        return next((about[key] for about in reversed(self.about.values()) if about.get(key)), "")

    @property
    def method(self):
        """Return the METHOD.NAME of the last script that ran; "" where nothing says it."""
        return next((about["method"] for about in reversed(self.about.values()) if about.get("method")), "")

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
        return [_read(path) for path in paths if path.exists()]

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
        beside, found = self.folder.resolve(), []
        if own := _records(self.folder / "metrics.json"):
            found += [Tested(".", Path(record["checkpoint"]).stem, "", record, self.folder) for record in own]
            if beside.parent.name == "tests" and "identity" in own[0]:
                how = [own[0]["identity"].get(key) for key in ("images", *DECIDING)]
                found += [Tested(path.name, BASELINE, "", record, path) for path, record in _below(beside.parent)
                          if is_untrained(record) and path != beside
                          and how == [record["identity"].get(key) for key in ("images", *DECIDING)]]
            return found
        for path, record in _below(self.folder / "tests"):
            if of := self._owner(record):
                settings = self.settings_of(MODEL_NAMES.get(of))
                differs = differences(record["identity"], settings, self.known("images"))
                found.append(Tested(path.name, of, differs, record, path))
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
    """Read a run's folder: `RunFiles`. Raises UserError: it is not there, holds no run, or a file is damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{quoted(folder)} is no folder; expected the OUTPUT_DIR of {WRITERS}")
    config = folder / "config.yml"
    return RunFiles(folder, _read(config, yaml.safe_load) if config.exists() else {}, read_rows(folder),
                    _read_named(folder / CONTENT_FOLDER, "run-{}.json", SCRIPTS),
                    _read(folder / GRID_FILE) if (folder / GRID_FILE).exists() else {})


def check_has_run(run):
    """Refuse a folder without anything to show. Args: run: `RunFiles`. Raises: UserError."""
    if not (run.epochs or run.tests or run.contents):
        raise UserError(f"{quoted(run.folder)} holds no run (no metrics.jsonl, metrics.json or {CONTENT_FOLDER}); "
                        f"expected the OUTPUT_DIR of {WRITERS} after an epoch or a test")


def is_untrained(record):
    """Tell whether a metrics.json, or a record of it, is of a model before any training."""
    return record.get("selection") == "no training"


def read_rows(folder):
    """Read a run's metrics.jsonl: a list of dicts, empty without the file. Raises: UserError: it is damaged."""
    path = Path(folder) / "metrics.jsonl"
    return _read(path, lambda text: [json.loads(line) for line in text.splitlines()]) if path.exists() else []


def _below(tests):
    """List the results in the folders of tests/ that say what they are of: [(folder, record)]."""
    return [(path.parent, record) for path in sorted(tests.glob("*/metrics.json")) for record in _records(path)
            if "identity" in record]


def _records(path):
    """Read the records of a metrics.json, [] without one. Raises: UserError: a number is not what a test writes."""
    content = _read(path) if path.exists() else {"results": []}
    records = content.get("results", [content])
    for record in records:
        for name in RATES:
            if type(record.get(name)) not in (int, float) or not 0 <= record[name] <= 1:
                raise UserError(f"{quoted(path)} holds {name} {quoted(str(record.get(name)))}; expected a number from "
                                "0 to 1, as test.py writes it. Test again")
    return records


def _read_named(folder, pattern, names):
    """Read those of several JSON files that are there: name -> content."""
    return {name: _read(folder / pattern.format(name)) for name in names if (folder / pattern.format(name)).exists()}


def _read(path, parse=json.loads):
    """Read a text file. Raises UserError: it is damaged or no file."""
    if not path.is_file():      # a pipe would be waited for
        raise UserError(f"{quoted(path)} is no file; expected what the run wrote. Remove it")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{quoted(path)} cannot be read ({' '.join(str(error).split())[:120]}). Expected is what the "
                        "run wrote: run the stage again, or remove the file")
