"""Reads what a run has written into its folder, for the page."""
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.errors import UserError

CONTENT_FOLDER = "report_data"
CONTENT_TITLES = {"test": "test.py", "finetune": "train_clip.py, last epoch", "prepare": "train_prepare.py, last epoch"}
FORMER_NAMES = {"model": "finetune"}        # how earlier versions called a stage in their files
SCRIPTS = ("train_prepare", "train_clip", "test")


@dataclass(frozen=True)
class RunFiles:
    """Holds what the files of a run's folder say."""

    folder: Path
    config: dict    # config.yml
    epochs: list    # metrics.jsonl, a dict per epoch of every stage
    tests: dict     # folder below this one ("." is this one) -> its metrics.json
    contents: dict  # key of CONTENT_TITLES -> report_data/KEY.json, as `utils.report.content` makes it
    about: dict     # script -> report_data/run-SCRIPT.json, where and how it ran

    def pictures(self):
        """Collect the small pictures of all contents: name -> base64 JPEG."""
        return {name: data for content in self.contents.values() for name, data in content["images"].items()}


def read_run(folder):
    """Read a run's folder: `RunFiles`. Raises UserError: it is not there, holds no run, or a file is damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected the OUTPUT_DIR of train_prepare.py, train_clip.py or test.py")
    epochs = _read(folder / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()], [])
    epochs = [{**row, "stage": FORMER_NAMES.get(row["stage"], row["stage"])} for row in epochs]
    paths = [path for pattern in ("metrics.json", "*/metrics.json", "tests/*/metrics.json")
             for path in sorted(folder.glob(pattern))]
    tests = {str(path.parent.relative_to(folder)).removeprefix("tests/"): _read(path, json.loads, None)
             for path in paths if not path.parent.name.startswith("old-")}
    if tests and folder.resolve().parent.name == "tests":        # a test's page compares with its neighbour
        tests |= {path.parent.name: _read(path, json.loads, None)
                  for path in sorted(folder.resolve().parent.glob("baseline_clip-*/metrics.json"))
                  if path.parent != folder.resolve()}
    contents = {}
    for name in (*CONTENT_TITLES, *FORMER_NAMES):
        content = _read(folder / CONTENT_FOLDER / f"{name}.json", json.loads, None)
        if content:
            contents.setdefault(FORMER_NAMES.get(name, name), content)
    if not (epochs or tests or contents):
        raise UserError(f"{folder} holds no run (no metrics.jsonl, metrics.json or {CONTENT_FOLDER}); expected the "
                        "OUTPUT_DIR of train_prepare.py, train_clip.py or test.py after an epoch or a test")
    about = {name: _read(folder / CONTENT_FOLDER / f"run-{name}.json", json.loads, None) for name in SCRIPTS}
    return RunFiles(folder, _read(folder / "config.yml", yaml.safe_load, {}) or {}, epochs, tests, contents,
                    {name: facts for name, facts in about.items() if facts})


def _read(path, parse, default):
    """Parse a text file, or give the default where there is none. Raises UserError: it is damaged."""
    if not path.is_file():
        return default
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}); expected the file that the "
                        "run wrote. Run the stage again, or remove the file")


def flat(tree, prefix=""):
    """Flatten a tree of dicts to {"A.B": value}."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
