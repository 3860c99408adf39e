"""A training run: output folder, log, checkpoints, page, and the state to resume from."""
import itertools
import json
import os
import shutil
from pathlib import Path

from configs.defaults import as_dict, load_config
from data.manifest import manifest_differences
from data.pseudo_labels import FILE_NAMES, save_pseudo_labels
from processor.run.epoch import on_host
from processor.run.events import EventLog
from processor.run.resume import StateFile, versions
from report import run_files
from report.write import save_report
from utils.checkpoint import save_checkpoint, write_atomically
from utils.distributed import ALONE
from utils.errors import UserError
from utils.settings import flat

FORMAT = "cclnet-2"
MODEL_FILES = {"prepare": "prepare", "finetune": "model"}      # stage -> start of its checkpoints' names

# Settings that may differ when a run is resumed: they decide neither weights nor labels. More epochs may be asked for.
# DEVICE, COMPILE and TEST.BATCH_SIZE change the order of additions, so the last bits.
MAY_CHANGE = ("DEVICE", "COMPILE", "OUTPUT_DIR", "PSEUDO_LABEL_DIR", "TEST.", "CHECKPOINT.", "LOG.",
              "DATASET.ROOT", "DATASET.CACHE_DIR", "DATASET.CACHE", "DATASET.CHECK_COUNTS", "PREPARE.ALLOW_COLLAPSE")
MAY_GROW = ("PREPARE.EPOCHS", "FINETUNE.EPOCHS")
# Script -> what it makes, and what was made from that: patterns under OUTPUT_DIR.
OF_CLIP = ("model_*.pth", "clip_state.pth*", "tensorboard/prompt", "tensorboard/finetune", "report_data/finetune.json",
           "report_data/run-train_clip.json", "report.html", "tests/model_*", "metrics.jsonl", "config.yml")
DEPENDENT = {"clip": OF_CLIP, "prepare": (*OF_CLIP, "prepare_*.pth", "prepare_state.pth*", "pseudo_labels",
                                          "tensorboard/prepare", "report_data/prepare.json",
                                          "report_data/run-train_prepare.json", "tests/prepare_*")}
ADVICE = "Set it back, choose another OUTPUT_DIR, or add --fresh to start over and keep the old files aside"


class Run:
    """Writes everything of a script's run, and resumes it.

    Args:
        script: "prepare" or "clip", of the state file; output_dir: folder of all files; log: logger;
        facts: dict stored in every checkpoint (configuration, data set);
        where: a list, whose last text says with which epoch the same command resumes;
        content: of the state file to resume from, None for a new run; processes: of `utils.distributed`.
    """

    def __init__(self, script, output_dir, log, facts, where, content=None, processes=ALONE):
        self.output_dir, self.processes = Path(output_dir), processes
        self.log, self.facts, self.where = log, facts, where
        self.events = EventLog(self.output_dir / "tensorboard")
        self.state_file = state_file(output_dir, script)
        content = content or {}
        self.states = content.get("stages", {})         # stage -> its state
        self.best = content.get("best", -1.0)           # Rank-1 of the best checkpoint so far
        self.history = content.get("history", [])       # a dict per finished epoch of this script

    @property
    def labels_folder(self):
        """The folder of the pseudo labels that the run makes."""
        return self.output_dir / "pseudo_labels"

    def model_file(self, stage, which):
        """Return the path of a stage's checkpoint. Args: which: "last" or "best"."""
        return self.output_dir / f"{MODEL_FILES[stage]}_{which}.pth"

    def restore(self, stage, state):
        """Return the state of a stage, with what an earlier run saved of it, if one did."""
        saved = self.states.get(stage)
        if saved:
            state.load_state_dict(saved)
        return state

    def epochs_left(self, stage, state, epochs):
        """Yield state.epoch until it has passed the last one; the loop's body moves it on. Says what is resumed."""
        if state.epoch > epochs:
            self.log.info(f"{stage}: all {epochs} epochs were trained already; add --fresh to start over")
        elif self.states.get(stage):
            self.log.info(f"{stage}: resuming with epoch {state.epoch}")
        while state.epoch <= epochs:
            self.where.append(f"the same command resumes with epoch {state.epoch} of {stage}")
            yield state.epoch

    def save_state(self, stage, state):
        """Write the state file. Args: state: `state_dict` of a stage; the other stages' are kept."""
        self.states[stage] = on_host(state)
        self.state_file.save({"format": FORMAT, "stages": self.states, "best": self.best, "history": self.history,
                              "versions": versions(), **self.facts})

    def is_best(self, rank1):
        """Tell whether a Rank-1 is the best of the run so far, and remember it."""
        if rank1 <= self.best:
            return False
        self.best = rank1
        return True

    def record(self, stage, distributions=None, **numbers):
        """Add an epoch's numbers to metrics.jsonl, a line per epoch of every stage, and to the TensorBoard files.

        Args: distributions: name -> (N,) values, for TensorBoard alone; numbers: "epoch" and others.
        """
        self.events.add(stage, numbers["epoch"], {k: v for k, v in numbers.items() if k != "epoch"}, distributions)
        self.history.append({"stage": stage, **numbers})
        mine = {row["stage"] for row in self.history}
        write_rows(self.output_dir, [row for row in read_rows(self.output_dir) if row["stage"] not in mine]
                   + self.history)

    def save_model(self, stage, which, content):
        """Write a stage's checkpoint with the run's facts. Args: which: "last" or "best"."""
        save_checkpoint(self.model_file(stage, which), {"format": FORMAT, **on_host(content), **self.facts})

    def has_labels(self):
        """Tell whether the pseudo labels are there."""
        return all((self.labels_folder / name).is_file() for name in FILE_NAMES.values())

    def save_labels(self, labels):
        """Write the pseudo labels. Args: labels: Modality -> (N,)."""
        save_pseudo_labels(self.labels_folder, labels, self.facts["manifest"])
        self.log.info(f"pseudo labels written to {self.labels_folder}")

    def save_page(self, stage, content):
        """Write a finished stage's part of the page. Args: content: a function that returns it."""
        save_report(self.output_dir, self.log, stage, content)

    def has_page(self, stage):
        """Tell whether the page and this stage's part of it are there."""
        return all((self.output_dir / name).is_file() for name in ("report.html", f"report_data/{stage}.json"))


class SilentRun(Run):
    """The run of a process that writes nothing, beside one that does."""

    def _write_nothing(self, *_, **__):
        """Stand in for a method that writes."""

    save_state = record = save_model = save_labels = save_page = _write_nothing


def state_file(output_dir, script):
    """Return the `StateFile` of a script's run."""
    return StateFile(Path(output_dir) / f"{script}_state.pth")


def check_resumable(content, facts, folder):
    """Refuse to resume from a state (content of a state file) of other settings, data, weights or labels.

    Returns: lines on what changed and may change, for the log.
    Raises: UserError: names the key that changed.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"the state file in {folder} is not of this version; expected format {FORMAT}. Choose another "
                        "OUTPUT_DIR, or add --fresh to start over and keep the old files aside")
    stored = as_dict(load_config(base=content["config"]))
    old = {**flat(stored), **flat(content["config"])}    # newer keys had their default's effect
    new, changes = flat(facts["config"]), []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        if key in MAY_GROW and now < before:
            raise UserError(f"the run in {folder} was started with {key} {before}, now it is {now}; only more epochs "
                            f"may be asked for. {ADVICE}")
        if key not in MAY_GROW and not key.startswith(MAY_CHANGE):
            raise UserError(f"the run in {folder} was started with {key} {before!r}, now it is {now!r}. {ADVICE}")
        changes.append(f"resuming with {key} {now!r} instead of {before!r}")
    for key in facts.keys() - {"config"}:
        if key == "manifest":
            differences = manifest_differences(facts[key], content[key])
            if differences:
                raise UserError(f"the run in {folder} was started on other images: here are {'; '.join(differences)}. "
                                "Set DATASET.ROOT to those of its start, choose another OUTPUT_DIR, or add --fresh to "
                                "start over and keep the old files aside")
        elif content.get(key) != facts[key]:
            raise UserError(f"the run in {folder} was started with other {key.replace('_', ' ')} than it has now. "
                            f"{ADVICE}")
    here = versions()
    return changes + [f"warning: resuming with {name} {here.get(name)} instead of {version}; the last bits may differ"
                      for name, version in content.get("versions", {}).items() if here.get(name) != version]


def read_rows(output_dir):
    """Read metrics.jsonl: a list of dicts, empty without the file.

    Raises: UserError: the file is not what training wrote, so that nothing can be added to it.
    """
    try:
        return run_files.read_rows(output_dir)
    except UserError as error:
        raise UserError(f"{error}; or add --fresh to start over and keep the old files aside")


def set_aside(output_dir, script):
    """Move what a script is about to make anew, and all that was made from it, into a new folder OUTPUT_DIR/old-N.

    Of metrics.jsonl the lines of a stage that is not made anew stay.

    Args: script: "prepare" or "clip". Returns: that folder, None if there was nothing.
    """
    output_dir = Path(output_dir)
    files = sorted({path for pattern in DEPENDENT[script] for path in output_dir.glob(pattern)})
    if not files:
        return None
    folders = (output_dir / f"old-{number}" for number in itertools.count(1))
    folder = next(folder for folder in folders if not os.path.lexists(folder))
    for path in files:
        target = folder / path.relative_to(output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    if script == "clip" and (folder / "metrics.jsonl").is_file():
        try:
            kept = [row for row in read_rows(folder) if row["stage"] == "prepare"]
        except UserError:       # damaged: it stays aside as a whole
            kept = []
        write_rows(output_dir, kept)
    return folder


def write_rows(output_dir, rows):
    """Write metrics.jsonl."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(Path(output_dir) / "metrics.jsonl", lambda file: file.write(text.encode()))
