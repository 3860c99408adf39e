"""Reads what a run has written into its folder, for the page."""
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from configs.defaults import with_defaults
from utils.errors import UserError, quoted
from utils.settings import flat

CONTENT_FOLDER = "report_data"
CONTENT_TITLES = {"test": "test.py", "finetune": "train_clip.py, last epoch", "prepare": "train_prepare.py, last epoch"}
SCRIPTS = ("train_prepare", "train_clip", "test")
WRITERS = "train_prepare.py, train_clip.py or test.py"


@dataclass(frozen=True)
class RunFiles:
    """Holds what the files of a run's folder say."""

    folder: Path
    config: dict    # config.yml
    epochs: list    # metrics.jsonl, a dict per epoch of every stage
    tests: dict     # folder below this one's tests/ ("." is this one) -> its metrics.json
    contents: dict  # key of CONTENT_TITLES -> report_data/KEY.json, as `report.content` makes it
    about: dict     # script -> report_data/run-SCRIPT.json, where and how it ran

    @property
    def settings(self):
        """Return config.yml as a flat dict, in which keys that it does not name have their defaults; {} without it."""
        return with_defaults(flat(self.config)) if self.config else {}

    def pictures(self):
        """Collect the small pictures of all contents: name -> base64 JPEG."""
        return {name: data for content in self.contents.values() for name, data in content["images"].items()}


def read_run(folder):
    """Read a run's folder: `RunFiles`. Raises UserError: it is not there, holds no run, or a file is damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{quoted(folder)} is no folder; expected the OUTPUT_DIR of {WRITERS}")
    paths = [*folder.glob("metrics.json"), *sorted(folder.glob("tests/*/metrics.json"))]
    tests = {"." if path.parent == folder else path.parent.name: _read(path) for path in paths}
    beside = folder.resolve()
    if tests and beside.parent.name == "tests":        # a test's page compares with the untrained model's
        found = {path.parent.name: _read(path) for path in sorted(beside.parent.glob("*/metrics.json"))
                 if path.parent != beside}
        tests |= {name: metrics for name, metrics in found.items() if is_untrained(metrics)}
    epochs, contents = read_rows(folder), _read_named(folder / CONTENT_FOLDER, "{}.json", CONTENT_TITLES)
    if not (epochs or tests or contents):
        raise UserError(f"{quoted(folder)} holds no run (no metrics.jsonl, metrics.json or {CONTENT_FOLDER}); expected "
                        f"the OUTPUT_DIR of {WRITERS} after an epoch or a test")
    config = folder / "config.yml"
    return RunFiles(folder, _read(config, yaml.safe_load) if config.exists() else {}, epochs, tests, contents,
                    _read_named(folder / CONTENT_FOLDER, "run-{}.json", SCRIPTS))


def is_untrained(record):
    """Tell whether a metrics.json, or a record of it, is of a model before any training."""
    return record.get("selection") == "no training"


def read_rows(folder):
    """Read a run's metrics.jsonl: a list of dicts, empty without the file. Raises: UserError: it is damaged."""
    path = Path(folder) / "metrics.jsonl"
    return _read(path, lambda text: [json.loads(line) for line in text.splitlines()]) if path.exists() else []


def _read_named(folder, pattern, names):
    """Read those of several JSON files that are there: name -> content."""
    return {name: _read(folder / pattern.format(name)) for name in names if (folder / pattern.format(name)).exists()}


def _read(path, parse=json.loads):
    """Read a text file. Raises UserError: it is damaged."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{quoted(path)} cannot be read ({' '.join(str(error).split())[:120]}). Expected is what the "
                        "run wrote: run the stage again, or remove the file")
