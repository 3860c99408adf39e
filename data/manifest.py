"""What a run's images are: hashes of all files, kept beside the decoded images, and a few lines made of them.

The lines are stored with pseudo labels and checkpoints, to tell later whether the images are the same.
"""
import hashlib
import json
from contextlib import suppress

import numpy as np
from PIL import Image

from data.images import FORMATS, OF_DATA_SET, file_stat, in_parallel, is_deep, pixel_range, stored_image
from utils.checkpoint import write_atomically
from utils.errors import UserError, explained, quoted
from utils.modality import Modality


def data_manifest(data, cache_dir="", ir_range=()):
    """Describe a `DataSet`: {"train": {"rgb": {"images", "paths", "contents"}, "ir": ...}, "test": ...}.

    "paths" is a hash over the relative paths in their order, "contents" one over the bytes of all files. Times are left
    out: a copy of the data is the same data. Test images add "scored", a hash over `DataSet.test_lines`, and images of
    more than 8 bits their "range".

    Args:
        cache_dir: folder of the decoded images, "" for the data set's own; the hashes are remembered there.
        ir_range: (low, high) in place of the measured range of infrared images, DATASET.IR_RANGE.
    Raises: UserError: an image is missing or cannot be read, or all pixels of a modality are the same.
    """
    facts, sets = image_facts(data, data.cache_dir(cache_dir)), data.sets()
    manifest = {"train": {}, "test": {}}
    for split, images in sets:
        m = images.modality
        deep = [facts[path][1] for _, of in sets if of.modality is m for path in of.paths if facts[path][1]]
        manifest[split][m.value] = {"images": len(images.paths), "paths": hash_of_lines(images.paths),
                                    "contents": hash_of_lines(facts[path][0] for path in images.paths),
                                    **grey_range_of(deep, m, ir_range)}
    for m in data.test:
        manifest["test"][m.value]["scored"] = hash_of_lines(data.test_lines(m))
    return manifest


def image_facts(data, folder):
    """Read what identifies every image of a `DataSet`: path -> `file_facts`.

    A file whose size and times have not changed since it was read is not read again: FOLDER/image_hashes.json
    remembers. Where that cannot be written, all files are read at the next start too.

    Raises: UserError: an image is missing or does not decode.
    """
    memory, known, stamps = folder / "image_hashes.json", {}, {}
    with suppress(OSError, ValueError):     # path -> [size, two times, hash, range of values]
        known = json.loads(memory.read_text(encoding="utf-8"))
    for path in (path for _, images in data.sets() for path in images.paths):
        stats = file_stat(data.root / path)
        stamps[path] = [stats.st_size, stats.st_mtime_ns, stats.st_ctime_ns]
    new = [path for path, stamp in stamps.items() if known.get(path, [])[:3] != stamp]
    read = in_parallel(lambda path: [*stamps[path], *file_facts(data.root / path)], new, "hashing images")
    if new:
        known.update(zip(new, read))
        text = json.dumps({path: known[path] for path in stamps})
        with suppress(UserError):       # a folder that cannot be written costs time at the next start, nothing else
            write_atomically(memory, lambda file: file.write(text.encode()))
    return {path: known[path][3:] for path in stamps}


def file_facts(path):
    """Read an image file: its SHA-256, and its `pixel_range` if it has more than 8 bits, else None."""
    with (explained(f"image {quoted(path)} does not decode", OF_DATA_SET), open(path, "rb") as file,
          Image.open(file, formats=FORMATS) as image):
        file.seek(0)
        digest = hashlib.sha256(file.read()).hexdigest()
        deep = is_deep(image)
    return [digest, pixel_range(stored_image(path)) if deep else None]


def hash_of_lines(lines):
    """Return the SHA-256 of lines of text: hex digits."""
    text = "".join(f"{line}\n" for line in lines)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def grey_range_of(values, modality, ir_range=()):
    """Choose the one range by which all images of a modality are brought to 8 bits: {"range": [low, high]}.

    Args: values: `data.images.pixel_range` of each image of more than 8 bits; ir_range: as `data_manifest`.
    Returns: the least and the greatest value in all of them, or ir_range; {} where there are none.
    Raises: UserError: all values are the same.
    """
    if not len(values):
        return {}
    low, high = ir_range if ir_range and modality is Modality.IR else (np.min(values), np.max(values))
    if low == high:
        raise UserError(f"all pixels of the {modality.value} images are {low:g}; expected images that show something. "
                        "Export them again")
    return {"range": [float(low), float(high)]}


def stored_range(content, modality):
    """Return the "range" of training images of a modality in a checkpoint's manifest: (low, high), None without one."""
    described = content.get("manifest", {"train": {}})["train"].get(modality.value, {})
    return tuple(described["range"]) if "range" in described else None


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
                # what an earlier version wrote may lack some
                if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
                    differences.append(f"{what} of other {phrase}")
                    break
    return differences
