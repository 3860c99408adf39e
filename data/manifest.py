"""What a run's images are: hashes of all files, kept beside the decoded images, and a few lines made of them.

The lines are stored with pseudo labels and checkpoints, to tell later whether the images are the same.
"""
import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path

from tqdm.contrib.concurrent import thread_map

from utils.checkpoint import write_atomically
from utils.errors import UserError, explained, in_brief, quoted

FORMAT = "image hashes of this project, 1"      # what a file must say before it is replaced


def file_stat(path):
    """Call os.stat on an image. Raises UserError: it is missing, a link that leads nowhere, or no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be reached ({in_brief(error)})"
        raise UserError(f"image {quoted(path)} {reason}; restore it or correct the lists of the data set")
    if not stat.S_ISREG(found.st_mode):         # reading a pipe would wait forever
        raise UserError(f"image {quoted(path)} does not decode (it is no file); replace it by the file of the original "
                        "data set")
    return found


def in_parallel(function, items, description):
    """Call function(item) for all items on all cores, with a progress bar: list. For work that releases the GIL."""
    return thread_map(function, items, max_workers=os.cpu_count(), unit="image", desc=description, mininterval=1,
                      leave=False, disable=None)


def hash_of_lines(lines):
    """Return the SHA-256 of lines of text: hex digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def file_hashes(image_set, root, split, folder):
    """Return size in bytes and SHA-256 of every file of an image set, in its order: [(int, hex digits)].

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
    new = [path for path in image_set.paths if known.get(path, [])[:3] != found[path]]
    hashes = dict(zip(new, in_parallel(lambda path: file_hash(Path(root) / path), new,
                                       f"hashing {image_set.modality.value} images")))
    files = {path: [*stamp, hashes.get(path) or known[path][3]] for path, stamp in found.items()}
    if new and remembered is not None:
        text = json.dumps({"format": FORMAT, "files": files})
        with suppress(UserError):       # a folder that cannot be written costs time at the next start, nothing else
            write_atomically(memory, lambda file: file.write(text.encode()))
    return [(files[path][0], files[path][3]) for path in image_set.paths]


def file_hash(path):
    """Return the SHA-256 of a file: hex digits. Raises UserError: it cannot be read."""
    with explained(f"image {quoted(path)} cannot be read", "restore it or correct the lists of the data set"):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _remembered(memory):
    """Read the hashes of earlier: path -> [size, two times, hash]; None where a file of that name is not ours."""
    if not os.path.lexists(memory):
        return {}
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
        return content["files"] if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def data_manifest(data, cache_dir=""):
    """Describe a `DataSet`: {"train": {"rgb": {"images", "paths", "files", "contents"}, "ir": ...}, "test": ...}.

    "paths" is a hash over the relative paths in their order, "files" one over paths and sizes, "contents" one over the
    bytes of all files; the last two are "" for images that come from an array. Times are left out: a copy of the data
    is the same data.

    Args: cache_dir: folder of the decoded images, "" for the data set's own; the hashes are remembered there.
    Raises: UserError: an image is missing or cannot be read.
    """
    manifest = {"train": {}, "test": {}}
    for split, images in data.sets():
        described = {"images": len(images), "paths": hash_of_lines(images.paths), "files": "", "contents": ""}
        if not images.array:
            files = file_hashes(images, data.root, split, data.cache_dir(cache_dir))
            described["files"] = hash_of_lines(f"{path} {size}" for path, (size, _) in zip(images.paths, files))
            described["contents"] = hash_of_lines(content for _, content in files)
        manifest[split][images.modality.value] = described
    return manifest


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
            for key, phrase in (("paths", "names or in another order"), ("files", "sizes"), ("contents", "contents")):
                # images that come from an array do not say what files they are of
                if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
                    differences.append(f"{what} of other {phrase}")
                    break
    return differences
