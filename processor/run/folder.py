"""The folder of a run: what is found in it when a run begins, and what it writes: log, numbers, checkpoints, state."""
import fcntl
import itertools
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from configs.defaults import with_defaults
from configs.groups import may_change, method_first
from data.manifest import manifest_differences
from data.pseudo_labels import save_pseudo_labels
from processor.run.events import EventLog
from processor.run.provenance import versions
from utils.checkpoint import PARTIAL, load_plain, on_host, save_checkpoint, save_json, write_atomically
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
MADE = {"prepare": ("prepare_*.pth", "pseudo_labels"), "clip": ("model_*.pth",)}     # by no other script
FRESH = "choose another OUTPUT_DIR, or add --fresh to start over and keep the old files aside"


def lock_folder(folder):
    """Hold a folder for this process until it ends, however it ends; the returned file must be kept open.

    Raises: UserError: a living process holds it, or the folder cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".lock", "a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another run is writing to {quoted(folder)}; wait for it, or choose another OUTPUT_DIR")
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {quoted(folder)} cannot be written or locked ({error.strerror or error}); choose "
                        "another")
    for partial in Path(folder).glob(f".*{PARTIAL}"):       # what a run that was killed while writing has left
        partial.unlink()
    return file


def find_state(folder, script, fresh, facts):
    """Find the state to resume from: the content of its file, None for a new run, and lines for the log.

    Args: script: "prepare" or "clip"; fresh: keep old files aside instead; facts: as `check_resumable`.
    Raises: UserError: the state cannot be read or is of another run, or files are there of which no state tells.
    """
    path, lines = Path(folder) / f"{script}_state.pth", []
    if fresh and (aside := set_aside(folder, script)):
        lines = [f"old files are kept in {aside}"]
    if not path.is_file():
        stages = ("prepare",) if script == "prepare" else ("prompt", "finetune")
        found = [made.name for pattern in MADE[script] for made in sorted(Path(folder).glob(pattern))]
        found += [f"{row['stage']} epochs in metrics.jsonl" for row in read_rows(folder) if row["stage"] in stages]
        if found:       # of a run without its state, or files of those names from elsewhere
            raise UserError(f"{quoted(folder)} holds {found[0]} but no {path.name} to resume from, and training would "
                            f"replace it; {FRESH}")
        return None, lines
    content = load_plain(path, f"state file {quoted(path)}",
                         "Add --fresh to start over and keep the old files aside")
    if content.get("stages") == {}:     # stopped in its first epoch: it begins anew, with other settings too
        return None, lines
    return content, check_resumable(content, facts, folder)


def check_resumable(content, facts, folder):
    """Refuse to resume from a state (content of a state file) of other settings, data, weights or labels.

    Returns: lines on what changed and may change, for the log.
    Raises: UserError: names the key that changed.
    """
    if content.get("format") != FORMAT:
        raise UserError(f"the state file in {quoted(folder)} is of another version of this project; expected format "
                        f"{FORMAT}. Its checkpoints can be tested; to train, {FRESH}")

    def refuse(found, remedy="Set it back"):
        raise UserError(f"the run in {quoted(folder)} was started {found}. {remedy}, {FRESH}")

    old, new, changes = with_defaults(flat(content["config"])), flat(facts["config"]), []
    for key in method_first(key for key in new if old.get(key, new[key]) != new[key]):
        before, now, grows = old[key], new[key], key in MAY_GROW
        if not (now > before if grows else may_change(key)):
            more = "; only more epochs may be asked for" if grows else ""
            refuse(f"with {key} {before!r}, now it is {now!r}{more}")
        changes.append(f"resuming with {key} {now!r} instead of {before!r}")
    if differences := manifest_differences(facts["manifest"], content["manifest"]):
        refuse(f"on other images: here are {'; '.join(differences)}", "Set DATASET.ROOT to those of its start")
    for key in facts.keys() - {"config", "manifest"}:
        if content.get(key) != facts[key]:
            refuse(f"with other {key.replace('_', ' ')} than it has now")
    here = versions()
    return changes + [f"warning: resuming with {name} {here.get(name)} instead of {version}; the last bits may differ"
                      for name, version in content["versions"].items() if here.get(name) != version]


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


class Run:
    """A training run: its folder, its log, and the state to resume from, which is saved at the end of every epoch.

    Args:
        script: "prepare" or "clip", of the state file; output_dir: folder of all files; log: logger;
        facts: dict stored in every checkpoint (configuration, data set);
        content: of the state file to resume from, None for a new run; processes: of `utils.distributed`, of which the
        first alone writes; about: a function that describes the run, which is asked and written after an epoch.
    """

    def __init__(self, script, output_dir, log, facts, content=None, processes=ALONE, about=None):
        self.script, self.output_dir, self.log, self.facts = script, Path(output_dir), log, facts
        self.processes, self.writes, self.about = processes, processes.writes, about
        self.more = {}                                  # further entries of every checkpoint, such as prompts
        self.state_path = self.output_dir / f"{script}_state.pth"
        self.labels_folder = self.output_dir / "pseudo_labels"      # that the run makes
        content = content or {}
        self.states = content.get("stages", {})         # stage -> its state
        self.best = content.get("best", -1.0)           # Rank-1 of the best checkpoint so far
        self.history = content.get("history", [])       # a dict per finished epoch of this script
        self.position = "starts again"                  # what the same command does
        self.epoch_began = time.perf_counter()
        self.writer, self.unwritten = ThreadPoolExecutor(1), []     # of large files, beside the next epoch's work

    @cached_property
    def events(self):
        """The `EventLog` of the run."""
        return EventLog(self.output_dir / "tensorboard", self.facts.get("config", {}))

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
            self.log.info(f"{stage}: epoch {epochs}, the last one, was trained already; add --fresh to start over")
        elif stage in self.states:
            self.log.info(f"{stage}: resuming with epoch {state.epoch}")
        while state.epoch <= epochs:
            self.position = f"resumes with epoch {state.epoch} of {stage}"
            self.epoch_began = time.perf_counter()
            yield state.epoch
        self.written()

    def save_state(self, stage, state):
        """Write the state file. Args: state: of a stage; the other stages' are kept."""
        self.states[stage] = state.state_dict()
        self._write(self.state_path, {"format": FORMAT, "stages": self.states, "best": self.best,
                                      "history": self.history, "versions": versions(), **self.facts})
        self.position = f"resumes with epoch {state.epoch} of {stage}"

    def begin(self):
        """Write a state without any epoch, which tells that what comes to lie beside it is this run's."""
        if not self.states:
            self._write(self.state_path, {"format": FORMAT, "stages": {}})

    def _write(self, path, content):
        """Let a file be written, with the content of now, after those before it, if all of them could be."""
        def write(content, before):
            for each in before:
                each.result()
            save_checkpoint(path, content)

        if self.writes:
            self.unwritten.append(self.writer.submit(write, on_host(content), self.unwritten[-1:]))

    def written(self):
        """Wait until all that was saved is on the disk. Raises: UserError: something could not be written."""
        for each in self.unwritten:
            each.result()
        self.unwritten = []         # now: a signal while waiting leaves them to be waited for

    def record(self, stage, distributions=None, **numbers):
        """Add an epoch's numbers to metrics.jsonl, a line per epoch of every stage, and to the TensorBoard files.

        Args: distributions: name -> (N,) values, for TensorBoard alone; numbers: "epoch" and others.
        """
        self.written()      # what the epoch before it saved
        self.history.append({"stage": stage, **numbers})
        if not self.writes:
            return
        self.events.add(stage, numbers["epoch"], {k: v for k, v in numbers.items() if k != "epoch"}, distributions)
        mine = {row["stage"] for row in self.history}
        write_rows(self.output_dir, [row for row in read_rows(self.output_dir) if row["stage"] not in mine]
                   + self.history)
        if self.about:
            save_json(self.output_dir / "report_data" / f"run-train_{self.script}.json", self.about())
            self.about = None

    def save_model(self, stage, which, content):
        """Write a stage's checkpoint with the run's facts. Args: which: "last" or "best"."""
        self._write(self.model_file(stage, which), {"format": FORMAT, **content, **self.facts, **self.more})

    def save_labels(self, labels, epoch, unified=False):
        """Write the pseudo labels of the last epoch. Args: labels: Modality -> (N,); unified: both share one range."""
        if self.writes:
            save_pseudo_labels(self.labels_folder, labels, self.facts["manifest"], unified,
                               {"epoch": epoch, "config": self.facts["config"]})
            self.log.info(f"pseudo labels written to {self.labels_folder}")


def read_rows(output_dir):
    """Read metrics.jsonl: a list of dicts, empty without the file."""
    path = Path(output_dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_rows(output_dir, rows):
    """Write metrics.jsonl."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(Path(output_dir) / "metrics.jsonl", lambda file: file.write(text.encode()))
