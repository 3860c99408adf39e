"""What a run's images are: hashes of all files, kept beside the decoded images, and a few lines made of them.

The lines are stored with pseudo labels and checkpoints, to tell later whether the images are the same.
"""
import hashlib
import json
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.images import deep_values, file_stat, in_parallel
from utils.checkpoint import read_digest, write_atomically
from utils.errors import UserError, explained, quoted
from utils.modality import Modality

FORMAT = "image hashes of this project, 1"      # what a file must say before it is replaced
FEW_LEVELS = 32     # grey levels of a typical image of more than 8 bits, below which a warning is due


def hash_of_lines(lines):
    """Return the SHA-256 of lines of text: hex digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def file_facts(image_set, root, split, folder):
    """Return what identifies every file of an image set, in its order: [(SHA-256, `deep_values`)].

    A file whose size and times have not changed since it was hashed is not read again: SPLIT_MODALITY_hashes.json
    remembers. Where that cannot be written, or is somebody else's file, all files are read.

    Args: image_set: `data.records.ImageSet`; root: folder its paths start from; split: "train" or "test"; folder: Path.
    Raises: UserError: an image is missing or cannot be read.
    """
    memory = Path(folder) / f"{split}_{image_set.modality.value}_hashes.json"
    remembered = _remembered(memory)
    known, found = remembered or {}, {}
    for path in image_set.paths:
        stats = file_stat(Path(root) / path)
        found[path] = [stats.st_size, stats.st_mtime_ns, stats.st_ctime_ns]
    new = [path for path in image_set.paths if known.get(path, [])[:3] != found[path] or len(known[path]) != 5]
    facts = dict(zip(new, in_parallel(lambda path: [file_hash(Path(root) / path), deep_values(Path(root) / path)], new,
                                      f"hashing {image_set.modality.value} images")))
    files = {path: [*stamp, *facts.get(path, known.get(path, [])[3:])] for path, stamp in found.items()}
    if new and remembered is not None:
        text = json.dumps({"format": FORMAT, "files": files})
        with suppress(UserError):       # a folder that cannot be written costs time at the next start, nothing else
            write_atomically(memory, lambda file: file.write(text.encode()))
    return [files[path][3:] for path in image_set.paths]


def file_hash(path):
    """Return the SHA-256 of a file: hex digits. Raises UserError: it cannot be read."""
    with explained(f"{quoted(path)} cannot be read", "restore it or correct the lists of the data set"):
        return read_digest(path)


def _remembered(memory):
    """Read what is known of earlier: path -> [size, two times, hash, deep_values]; None where the file is not ours."""
    if not os.path.lexists(memory):
        return {}
    try:
        content = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
        return content["files"] if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def data_manifest(data, cache_dir="", ir_range=()):
    """Describe a `DataSet`: {"train": {"rgb": {"images", "paths", "contents"}, "ir": ...}, "test": ...}.

    "paths" is a hash over the relative paths in their order, "contents" one over the bytes of all files, "" for images
    that come from an array. Times are left out: a copy of the data is the same data. Test images add "scored", a hash
    over `DataSet.test_lines`, and images of more than 8 bits what `grey_range` returns.

    Args:
        cache_dir: folder of the decoded images, "" for the data set's own; the hashes are remembered there.
        ir_range: (low, high) in place of the measured range of infrared images, DATASET.IR_RANGE.
    Raises: UserError: an image is missing or cannot be read, or all pixels of a modality are the same.
    """
    manifest, sets = {"train": {}, "test": {}}, []
    for split, images in data.sets():
        facts = [] if images.array else file_facts(images, data.root, split, data.cache_dir(cache_dir))
        sets.append((split, images, facts))
    for split, images, facts in sets:
        described = {"images": len(images), "paths": hash_of_lines(images.paths), "contents": ""}
        if not images.array:
            described["contents"] = hash_of_lines(content for content, _ in facts)
            of_modality = [fact[1] for _, other, facts in sets if other.modality is images.modality for fact in facts]
            described |= grey_range(of_modality, images.modality, ir_range)
        if split == "test":
            described["scored"] = hash_of_lines(data.test_lines(images.modality))
        manifest[split][images.modality.value] = described
    return manifest


def grey_range(values, modality, ir_range=()):
    """Choose the one range by which all images of a modality are brought to 8 bits: {"range", "typical"}.

    Args: values: of `data.images.deep_values` or `pixel_range`, one of each image; ir_range: as `data_manifest`.
    Returns: "range": the least and the greatest value in all images of more than 8 bits, or ir_range; "typical": the
        medians of their 1st and 99th percentiles; {} where no image has more than 8 bits.
    Raises: UserError: all values are the same.
    """
    deep = np.array([value for value in values if value and len(value) == 4])
    if not len(deep):
        return {}
    low, high = ir_range if ir_range and modality is Modality.IR else (deep[:, 0].min(), deep[:, 1].max())
    if low == high:
        raise UserError(f"all pixels of the {modality.value} images are {low:g}; expected images that show something. "
                        "Export them again")
    return {"range": [float(low), float(high)], "typical": np.median(deep[:, 2:], axis=0).tolist()}


def stored_range(content, modality):
    """Return the "range" of training images of a modality in a checkpoint's manifest: (low, high), None without one."""
    try:
        low, high = (float(number) for number in content["manifest"]["train"][modality.value]["range"])
    except (KeyError, TypeError, ValueError):
        return None
    return (low, high) if low < high and math.isfinite(high - low) else None


def range_line(described, modality):
    """Say in a line how images of more than 8 bits become 8 bits. Args: described: holds what `grey_range` returns."""
    (low, high), typical = described["range"], described["typical"]
    least, most = np.clip(typical, low, high)
    levels = round(255 * (most - least) / (high - low)) + 1
    line = (f"{modality.value} images of more than 8 bits: {low:g} to {high:g} become grey levels 0 to 255; a typical "
            f"image spans {typical[0]:g} to {typical[1]:g}, {levels} of them")
    return line if levels >= FEW_LEVELS else (
        f"warning: {line}; where a few odd pixels widen the range, set DATASET.IR_RANGE (process.py: --ir_range)")


def manifest_differences(found, expected, splits=("train", "test")):
    """Name what differs between two manifests, in phrases; none if they may describe the same data."""
    differences = []
    for split in splits:
        for modality in sorted(expected[split].keys() | found[split].keys()):
            ours, theirs = (side[split].get(modality, {"images": 0}) for side in (found, expected))
            what = f"{split} {modality} images"
            if ours["images"] != theirs["images"]:
                differences.append(f"{ours['images']:,} {what} instead of {theirs['images']:,}")
                continue
            for key, phrase in (("paths", "names or in another order"), ("contents", "contents"),
                                ("scored", "persons, cameras, queries or galleries"),
                                ("range", "grey ranges (DATASET.IR_RANGE)")):
                # images that come from an array do not say what files they are of
                if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
                    differences.append(f"{what} of other {phrase}")
                    break
    return differences
