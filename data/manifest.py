"""What a run's images are: hashes of all files, kept beside the decoded images, and a few lines made of them.

The lines are stored with pseudo labels and checkpoints, to tell later whether the images are the same.
"""
import hashlib
import json
from contextlib import suppress

from PIL import Image

from data.images import FORMATS, OF_DATA_SET, file_stat, grey_range_of, in_parallel, is_deep, pixel_range, stored_image
from utils.checkpoint import write_atomically
from utils.errors import UserError, explained, quoted


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
    manifest = {"train": {}, "test": {}}
    facts = {(split, images.modality): set_facts(images, data.root, split, data.cache_dir(cache_dir))
             for split, images in data.sets()}
    for split, images in data.sets():
        m = images.modality
        deep = [values[:2] for (_, other), rows in facts.items() if other is m for _, values in rows if values]
        described = {"images": len(images), "paths": hash_of_lines(images.paths),
                     "contents": hash_of_lines(digest for digest, _ in facts[split, m]),
                     **grey_range_of(deep, m, ir_range)}
        if split == "test":
            described["scored"] = hash_of_lines(data.test_lines(m))
        manifest[split][m.value] = described
    return manifest


def set_facts(image_set, root, split, folder):
    """Read what identifies every file of an image set, in its order: a list of `file_facts`.

    A file whose size and times have not changed since it was read is not read again: SPLIT_MODALITY_hashes.json
    remembers. Where that cannot be written, all files are read at the next start too.

    Args: image_set: `data.records.ImageSet`; root: folder its paths start from; split: "train" or "test"; folder: Path.
    Raises: UserError: an image is missing or cannot be read.
    """
    memory, known, stamps = folder / f"{split}_{image_set.modality.value}_hashes.json", {}, {}
    with suppress(OSError, ValueError):     # path -> [size, two times, hash, range of values]
        known = json.loads(memory.read_text(encoding="utf-8"))["files"]
    for path in image_set.paths:
        stats = file_stat(root / path)
        stamps[path] = [stats.st_size, stats.st_mtime_ns, stats.st_ctime_ns]
    new = [path for path in image_set.paths if known.get(path, [])[:3] != stamps[path]]
    read = in_parallel(lambda path: [*stamps[path], *file_facts(root / path)], new,
                       f"hashing {image_set.modality.value} images")
    files = {path: known.get(path) for path in image_set.paths} | dict(zip(new, read))
    if new:
        text = json.dumps({"files": files})
        with suppress(UserError):       # a folder that cannot be written costs time at the next start, nothing else
            write_atomically(memory, lambda file: file.write(text.encode()))
    return [files[path][3:] for path in image_set.paths]


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
