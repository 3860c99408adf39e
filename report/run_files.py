"""Reads what a run has written into its folder, for the page."""
from dataclasses import dataclass
from pathlib import Path

import yaml

from report.schema import CONTENT, METRICS, ROW
from utils.errors import UserError, quoted
from utils.structure import anything, finite_json, must_fit, table

CONTENT_FOLDER = "report_data"
BOUND_FILE = "BOUND.txt"        # what `tools/bounds.py` told a run: "Trained with true links: ..."
REMEDY = "Expected is what the run wrote: run the stage again, or remove the file"
CONTENT_TITLES = {"test": "test.py", "finetune": "train_clip.py, last epoch", "prepare": "train_prepare.py, last epoch"}
FORMER_NAMES = {"model": "finetune"}        # how earlier versions called a stage in their files
SCRIPTS = ("train_prepare", "train_clip", "test")


@dataclass(frozen=True)
class RunFiles:
    """Holds what the files of a run's folder say."""

    folder: Path
    config: dict    # config.yml, and what training was told beside it (`read_bound`)
    epochs: list    # metrics.jsonl, a dict per epoch of every stage
    tests: dict     # folder below this one ("." is this one) -> its metrics.json
    contents: dict  # key of CONTENT_TITLES -> report_data/KEY.json, as `report.content` makes it
    about: dict     # script -> report_data/run-SCRIPT.json, where and how it ran

    def pictures(self):
        """Collect the small pictures of all contents: name -> base64 JPEG."""
        return {name: data for content in self.contents.values() for name, data in content["images"].items()}


def read_run(folder):
    """Read a run's folder: `RunFiles`. Raises UserError: it is not there, holds no run, or a file is damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{quoted(folder)} is no folder; expected the OUTPUT_DIR of train_prepare.py, train_clip.py or "
                        "test.py")
    epochs = read_rows(folder)
    paths = [path for pattern in ("metrics.json", "*/metrics.json", "tests/*/metrics.json")
             for path in sorted(folder.glob(pattern))]
    tests = {str(path.parent.relative_to(folder)).removeprefix("tests/"): _read(path, finite_json, METRICS)
             for path in paths if not path.parent.name.startswith("old-")}
    if tests and folder.resolve().parent.name == "tests":        # a test's page compares with its neighbour
        tests |= {path.parent.name: _read(path, finite_json, METRICS)
                  for path in sorted(folder.resolve().parent.glob("baseline_clip-*/metrics.json"))
                  if path.parent != folder.resolve()}
    contents = {}
    for name in (*CONTENT_TITLES, *FORMER_NAMES):
        path = folder / CONTENT_FOLDER / f"{name}.json"
        if path.exists():
            contents.setdefault(FORMER_NAMES.get(name, name), _read(path, finite_json, CONTENT))
    config = folder / "config.yml"
    if not (epochs or tests or contents):
        raise UserError(f"{quoted(folder)} holds no run (no metrics.jsonl, metrics.json or {CONTENT_FOLDER}); expected "
                        "the OUTPUT_DIR of train_prepare.py, train_clip.py or test.py after an epoch or a test")
    about = {name: _read(path, finite_json, table(anything)) for name in SCRIPTS
             if (path := folder / CONTENT_FOLDER / f"run-{name}.json").exists()}
    settings = _read(config, yaml.safe_load, table(anything)) | read_bound(folder) if config.exists() else {}
    return RunFiles(folder, settings, epochs, tests, contents, about)


def read_bound(folder):
    """Return {"BOUND": "true links" or "true labels"} of a run that `tools/bounds.py` told identities; else {}.

    Args: folder: of the run, or of one of its tests.
    """
    folder = Path(folder).resolve()
    places = [folder, folder.parent.parent] if folder.parent.name == "tests" else [folder]
    for path in (place / BOUND_FILE for place in places):
        if path.is_file():
            return {"BOUND": path.read_text(encoding="utf-8").partition(":")[0].removeprefix("Trained with ")}
    return {}


def read_rows(folder):
    """Read a run's metrics.jsonl: a list of dicts, empty without the file; stages have today's names.

    Raises: UserError: it is damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = _read(path, lambda lines: list(map(finite_json, lines.splitlines())), anything)
    for number, row in enumerate(rows, start=1):
        must_fit(row, ROW, f"line {number} of {quoted(path)}", REMEDY)
    return [{**row, "stage": FORMER_NAMES.get(row["stage"], row["stage"])} for row in rows]


def _read(path, parse, check):
    """Parse a text file and check what it holds. Raises UserError: it is damaged, or holds something else."""
    if not path.is_file():
        raise UserError(f"{quoted(path)} is no file. {REMEDY}")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{quoted(path)} cannot be read ({' '.join(str(error).split())[:120]}). {REMEDY}")
    return must_fit(content, check, quoted(path), REMEDY)
