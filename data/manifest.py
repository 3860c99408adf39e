"""Describe the images of a run in a few lines, which are stored with its pseudo labels and checkpoints."""
from pathlib import Path

from data.hashes import content_hashes, file_stat, hash_of_lines


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
            described["files"] = hash_of_lines(f"{path} {file_stat(Path(data.root) / path).st_size}"
                                               for path in images.paths)
            described["contents"] = hash_of_lines(content_hashes(images, data.root, split, data.cache_dir(cache_dir)))
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
