"""Describe the images of a run in a few lines, which are stored with its pseudo labels and checkpoints."""
import hashlib
import os
from pathlib import Path

from utils.errors import UserError


def file_stat(path):
    """Call os.stat on an image. Raises UserError: it is missing, or a link that leads nowhere."""
    try:
        return os.stat(path)
    except OSError as error:
        found = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be reached ({error.strerror})"
        raise UserError(f"image {path} {found}; restore it or correct the lists of the data set")


def data_manifest(data):
    """Describe a `DataSet`: {"train": {"rgb": {"images", "paths", "files"}, "ir": ...}, "test": ...}.

    "paths" is a hash over the relative paths in their order, "files" one over paths and sizes, or "" for images that
    come from an array. Times are left out: a copy of the data is the same data.
    """
    manifest = {"train": {}, "test": {}}
    for split, images in data.sets():
        manifest[split][images.modality.value] = {
            "images": len(images), "paths": _digest(images.paths), "files": "" if images.array else _digest(
                f"{path} {file_stat(Path(data.root) / path).st_size}" for path in images.paths)}
    return manifest


def manifest_differences(found, expected, splits=("train", "test")):
    """Name what differs between two manifests, in phrases; none if they may describe the same data."""
    differences = []
    for split in splits:
        for modality, theirs in expected[split].items():
            ours, what = found[split][modality], f"{split} {modality} images"
            if ours["images"] != theirs["images"]:
                differences.append(f"{ours['images']:,} {what} instead of {theirs['images']:,}")
            elif ours["paths"] != theirs["paths"]:
                differences.append(f"{what} of other names or in another order")
            elif ours["files"] and theirs["files"] and ours["files"] != theirs["files"]:
                differences.append(f"{what} of other sizes")
    return differences


def _digest(lines):
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()
