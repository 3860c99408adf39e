"""A run of one script: its folder, log and tester, what it has reached, and the state it goes on from."""
import json
import shutil
import time
from pathlib import Path

from utils.checkpoint import save_checkpoint, write_atomically
from utils.errors import Stopped
from utils.events import EventLog
from utils.resume import StateFile, versions

FORMAT = "cclnet-1"


class Run:
    """Saves, resumes and logs for the stages of one script.

    Args:
        name: "prepare" or "clip", of the state file; output_dir: folder of all files; log: logger;
        tester: `processor.evaluate.Tester`; facts: dict stored in every checkpoint (configuration, data set);
        stop: `utils.resume.StopRequest`; minutes: between state files within an epoch;
        content: of the state file to go on from, None for a new run;
        persons: Modality -> (N,) identities of the training images, for the diagnosis alone; None where unknown.
    """

    def __init__(self, name, output_dir, log, tester, facts, stop, minutes=10.0, content=None, persons=None):
        self.output_dir = Path(output_dir)
        self.log, self.tester, self.facts, self.stop, self.minutes = log, tester, facts, stop, minutes
        self.persons = persons
        self.events = EventLog(self.output_dir / "tensorboard")
        self.state_file = state_file(output_dir, name)
        self.saved_at = time.monotonic()
        content = content or {}
        self.resumed = content.get("stages", {})        # the stages' states to go on from
        self.best = content.get("best", -1.0)           # Rank-1 of the best checkpoint so far
        self.history = content.get("history", [])       # a dict per finished epoch of this script

    def save(self, stages):
        """Write the state file: stages is a dict of the stages' `state_dict`s."""
        self.state_file.save({"format": FORMAT, "stages": stages, "best": self.best, "history": self.history,
                              "versions": versions(), **self.facts})
        self.saved_at = time.monotonic()

    def after_step(self, stages):
        """A callback for the end of an iteration: saves now and then, and when the run shall stop.

        Args: stages: a function that gives the dict for `save`.
        Raises: Stopped: SIGTERM or Ctrl-C came.
        """
        def check():
            if self.stop.signal_number is not None:
                self.save(stages())
                raise Stopped(f"stopped; the state is in {self.state_file.path}, and the same command goes on from it",
                              self.stop.signal_number)
            if time.monotonic() - self.saved_at > 60 * self.minutes:
                self.save(stages())
        return check

    def record(self, stage, distributions=None, **numbers):
        """Add an epoch's numbers to metrics.jsonl, a line per epoch of every stage, and to the TensorBoard files.

        Args: distributions: name -> (N,) values, for TensorBoard alone; numbers: "epoch" and others.
        """
        self.events.add(stage, numbers["epoch"], {k: v for k, v in numbers.items() if k != "epoch"}, distributions)
        self.history.append({"stage": stage, **numbers})
        path, mine = self.output_dir / "metrics.jsonl", {row["stage"] for row in self.history}
        old = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        rows = [row for row in old if row["stage"] not in mine] + self.history
        write_atomically(path, lambda file: file.write("".join(json.dumps(row) + "\n" for row in rows).encode()))

    def save_model(self, name, content):
        """Write OUTPUT_DIR/NAME.pth with the run's facts."""
        save_checkpoint(self.output_dir / f"{name}.pth", {"format": FORMAT, **content, **self.facts})


def state_file(output_dir, name):
    """The `StateFile` of a script's run."""
    return StateFile(Path(output_dir) / f"{name}_state.pth")


def set_aside(output_dir, patterns):
    """Move a script's old files into a new folder OUTPUT_DIR/old-N: that folder, None if there were none."""
    output_dir = Path(output_dir)
    files = [path for pattern in patterns for path in output_dir.glob(pattern)]
    if not files:
        return None
    number = 1
    while (output_dir / f"old-{number}").exists():
        number += 1
    folder = output_dir / f"old-{number}"
    folder.mkdir()
    for path in files:
        shutil.move(path, folder / path.name)
    return folder
