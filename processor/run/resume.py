"""What a run finds in its folder when it begins: another run, a state to resume from, or what it must not replace."""
import fcntl
import itertools
import os
import shutil
from pathlib import Path

from configs.groups import may_change
from data.manifest import manifest_differences
from processor.run.folder import FORMAT, read_rows, write_rows
from processor.run.provenance import versions
from utils.checkpoint import PARTIAL, load_plain
from utils.errors import UserError, quoted
from utils.settings import flat

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
        refuse_orphans(folder, script)
        return None, lines
    content = load_plain(path, f"state file {quoted(path)}",
                         "Add --fresh to start over and keep the old files aside")
    if content.get("stages") == {}:     # stopped in its first epoch: it begins anew, with other settings too
        return None, lines
    return content, check_resumable(content, facts, folder)


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

    def refuse(found, remedy="Set it back"):
        raise UserError(f"the run in {quoted(folder)} was started {found}. {remedy}, {FRESH}")

    old, new, changes = flat(content["config"]), flat(facts["config"]), []
    for key in sorted(key for key in new if old.get(key, new[key]) != new[key]):
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
