"""A training run: output folder, log, checkpoints, and the state to resume from."""
import itertools
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from configs.groups import may_change
from data.manifest import manifest_differences
from data.pseudo_labels import FILE_NAMES, save_pseudo_labels
from processor.run.events import EventLog
from processor.run.resume import StateFile, versions
from utils.checkpoint import on_host, save_checkpoint, write_atomically
from utils.distributed import ALONE
from utils.errors import UserError, quoted
from utils.settings import flat

FORMAT = "cclnet-3"
MODEL_FILES = {"prepare": "prepare", "finetune": "model"}      # stage -> start of its checkpoints' names

# More epochs may be asked for when a run is resumed; what else may differ stands in configs/groups.py.
MAY_GROW = ("PREPARE.EPOCHS", "FINETUNE.EPOCHS")
# Script -> what it makes, and what was made from that: patterns under OUTPUT_DIR.
OF_CLIP = ("model_*.pth", "clip_state.pth*", "tensorboard/prompt", "tensorboard/finetune", "report_data/finetune.json",
           "report_data/run-train_clip.json", "report.html", "tests/model_*", "metrics.jsonl", "config.yml")
DEPENDENT = {"clip": OF_CLIP, "prepare": (*OF_CLIP, "prepare_*.pth", "prepare_state.pth*", "pseudo_labels",
                                          "tensorboard/prepare", "report_data/prepare.json",
                                          "report_data/run-train_prepare.json", "tests/prepare_*")}
MADE = {"prepare": ("prepare_*.pth", "pseudo_labels"), "clip": ("model_*.pth",)}     # of them, what no other makes
FRESH = "choose another OUTPUT_DIR, or add --fresh to start over and keep the old files aside"


class Run:
    """A training run: its folder, its log, and the state to resume from, which is saved at the end of every epoch.

    Args:
        script: "prepare" or "clip", of the state file; output_dir: folder of all files; log: logger;
        facts: dict stored in every checkpoint (configuration, data set);
        content: of the state file to resume from, None for a new run; processes: of `utils.distributed`.
    """

    def __init__(self, script, output_dir, log, facts, content=None, processes=ALONE):
        self.output_dir, self.log, self.facts, self.processes = Path(output_dir), log, facts, processes
        self.more = {}                                  # further entries of every checkpoint, such as prompts
        self.events = EventLog(self.output_dir / "tensorboard", facts.get("config", {}))
        self.state_file = state_file(output_dir, script)
        content = content or {}
        self.states = content.get("stages", {})         # stage -> its state
        self.best = content.get("best", -1.0)           # Rank-1 of the best checkpoint so far
        self.history = content.get("history", [])       # a dict per finished epoch of this script
        self.position = "starts again"                  # what the same command does
        self.epoch_began = self.training_began = time.perf_counter()
        self.writer, self.unwritten = ThreadPoolExecutor(1), []     # of large files, beside the next epoch's work

    @property
    def labels_folder(self):
        """The folder of the pseudo labels that the run makes."""
        return self.output_dir / "pseudo_labels"

    def model_file(self, stage, which):
        """Return the path of a stage's checkpoint. Args: which: "last" or "best"."""
        return self.output_dir / f"{MODEL_FILES[stage]}_{which}.pth"

    def restore(self, stage, state):
        """Return the state of a stage, with what an earlier run saved of it, if one did."""
        if stage in self.states:
            state.load_state_dict(self.states[stage])
        return state

    def epochs_left(self, stage, state, epochs):
        """Yield state.epoch until it has passed the last one; the loop's body moves it on. Says what is resumed."""
        if state.epoch > epochs:
            self.log.info(f"{stage}: all {epochs} epochs were trained already; add --fresh to start over")
        elif stage in self.states:
            self.log.info(f"{stage}: resuming with epoch {state.epoch}")
        while state.epoch <= epochs:
            self.position = f"resumes with epoch {state.epoch} of {stage}"
            self.epoch_began = self.training_began = time.perf_counter()
            yield state.epoch
        self.written()

    def training_begins(self):
        """Note that an epoch's features, clusters and links are there and its first step comes."""
        self.training_began = time.perf_counter()

    def save_state(self, stage, state):
        """Write the state file. Args: state: of a stage; the other stages' are kept."""
        self.states[stage] = on_host(state.state_dict())
        self._save_state()
        self.position = f"resumes with epoch {state.epoch} of {stage}"

    def begin(self):
        """Write a state without any epoch, which tells that what comes to lie beside it is this run's."""
        if not self.states:
            self._save_state()

    def _save_state(self):
        self._write(self.state_file.save, {
            "format": FORMAT, "stages": dict(self.states), "best": self.best, "history": list(self.history),
            "versions": versions(), **self.facts})

    def _write(self, function, *arguments):
        """Let a function write, after those before it. Args: arguments: that nobody changes any more."""
        self.unwritten.append(self.writer.submit(function, *arguments))

    def written(self):
        """Wait until all that was saved is on the disk. Raises: UserError: something could not be written."""
        unwritten, self.unwritten = self.unwritten, []
        for each in unwritten:
            each.result()

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
        self.written()      # what the epoch before it saved
        self.events.add(stage, numbers["epoch"], {k: v for k, v in numbers.items() if k != "epoch"}, distributions)
        self.history.append({"stage": stage, **numbers})
        mine = {row["stage"] for row in self.history}
        write_rows(self.output_dir, [row for row in read_rows(self.output_dir) if row["stage"] not in mine]
                   + self.history)

    def save_model(self, stage, which, content):
        """Write a stage's checkpoint with the run's facts. Args: which: "last" or "best"."""
        content = {"format": FORMAT, **content, **self.facts, **self.more}
        self._write(save_checkpoint, self.model_file(stage, which), on_host(content))

    def has_labels(self):
        """Tell whether the pseudo labels are there."""
        return all((self.labels_folder / name).is_file() for name in FILE_NAMES.values())

    def has_page(self, stage):
        """Tell whether the page and this stage's part of it are there."""
        return all((self.output_dir / name).is_file() for name in ("report.html", f"report_data/{stage}.json"))

    def save_labels(self, labels, epoch, unified=False):
        """Write the pseudo labels of the last epoch. Args: labels: Modality -> (N,); unified: both share one range."""
        save_pseudo_labels(self.labels_folder, labels, self.facts["manifest"], unified,
                           {"epoch": epoch, "config": self.facts["config"]})
        self.log.info(f"pseudo labels written to {self.labels_folder}")


class SilentRun(Run):
    """The run of a process that writes nothing, beside one that does."""

    def _write_nothing(self, *_, **__):
        """Stand in for a method that writes."""

    begin = save_state = save_model = save_labels = _write_nothing

    def record(self, stage, distributions=None, **numbers):
        """Remember an epoch's numbers."""
        self.history.append({"stage": stage, **numbers})


def state_file(output_dir, script):
    """Return the `StateFile` of a script's run."""
    return StateFile(Path(output_dir) / f"{script}_state.pth")


def refuse_orphans(output_dir, script):
    """Refuse to train over what a script would replace where no state says how it was made.

    Raises: UserError: checkpoints, pseudo labels or logged epochs are there, of a run without its state, or a file of
        that name from elsewhere.
    """
    folder, stages = Path(output_dir), ("prepare",) if script == "prepare" else ("prompt", "finetune")
    found = [path.name for pattern in MADE[script] for path in sorted(folder.glob(pattern))]
    found += [f"{stage} epochs in metrics.jsonl" for stage in stages
              if any(row["stage"] == stage for row in read_rows(folder))]
    if found:
        raise UserError(f"{quoted(folder)} holds {found[0]} but no {script}_state.pth to resume from, and "
                        f"training would replace it; {FRESH}")


def check_resumable(content, facts, folder):
    """Refuse to resume from a state (content of a state file) of other settings, data, weights or labels.

    Returns: lines on what changed and may change, for the log.
    Raises: UserError: names the key that changed.
    """
    if content.get("format") != FORMAT:
        raise UserError(f"the state file in {quoted(folder)} is of another version of this project; expected format "
                        f"{FORMAT}. Its checkpoints can be tested; to train, {FRESH}")
    old, new, changes = flat(content["config"]), flat(facts["config"]), []
    for key in sorted(new):
        before, now = old.get(key, new[key]), new[key]
        if before == now:
            continue
        if key in MAY_GROW and now < before:
            raise UserError(f"the run in {quoted(folder)} was started with {key} {before}, now it is {now}; only more "
                            f"epochs may be asked for. Set it back, {FRESH}")
        if key not in MAY_GROW and not may_change(key):
            raise UserError(f"the run in {quoted(folder)} was started with {key} {before!r}, now it is {now!r}. Set it "
                            f"back, {FRESH}")
        changes.append(f"resuming with {key} {now!r} instead of {before!r}")
    if differences := manifest_differences(facts["manifest"], content["manifest"]):
        raise UserError(f"the run in {quoted(folder)} was started on other images: here are {'; '.join(differences)}. "
                        f"Set DATASET.ROOT to those of its start, {FRESH}")
    for key in facts.keys() - {"config", "manifest"}:
        if content.get(key) != facts[key]:
            raise UserError(f"the run in {quoted(folder)} was started with other {key.replace('_', ' ')} than it has "
                            f"now. Set it back, {FRESH}")
    here = versions()
    return changes + [f"warning: resuming with {name} {here.get(name)} instead of {version}; the last bits may differ"
                      for name, version in content["versions"].items() if here.get(name) != version]


def read_rows(output_dir):
    """Read metrics.jsonl: a list of dicts, empty without the file."""
    path = Path(output_dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_rows(output_dir, rows):
    """Write metrics.jsonl."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(Path(output_dir) / "metrics.jsonl", lambda file: file.write(text.encode()))


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
    if script == "clip":
        write_rows(output_dir, [row for row in read_rows(folder) if row["stage"] == "prepare"])
    return folder
