"""A training run while it runs: its log, its numbers, its checkpoints, and the state to resume from."""
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from data.pseudo_labels import save_pseudo_labels
from processor.run.events import EventLog
from processor.run.provenance import versions
from utils.checkpoint import on_host, save_checkpoint, save_json, write_atomically
from utils.distributed import ALONE

FORMAT = "cclnet-3"
MODEL_FILES = {"prepare": "prepare", "finetune": "model"}      # stage -> start of its checkpoints' names


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
        """Let a file be written after those before it, with the content of now."""
        if self.writes:
            self.unwritten.append(self.writer.submit(save_checkpoint, path, on_host(content)))

    def written(self):
        """Wait until all that was saved is on the disk. Raises: UserError: something could not be written."""
        unwritten, self.unwritten = self.unwritten, []
        for each in unwritten:
            each.result()

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
