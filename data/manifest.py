"""Describe the images of a run in a few lines, which are stored with its pseudo labels and checkpoints."""
from pathlib import Path

from data.hashes import content_hashes, file_stat, hash_of_lines
from utils.structure import record, table, text, whole

# What `data_manifest` gives, as files hold it; those of earlier versions know sizes alone.
OF_A_SET = record({"images": whole(), "paths": text, "files": text}, {"contents": text})
MANIFEST = record({"train": table(OF_A_SET), "test": table(OF_A_SET)})


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
        sizes = [] if images.array else [f"{path} {file_stat(Path(data.root) / path).st_size}" for path in images.paths]
        contents = [] if images.array else content_hashes(images, data.root, split, data.cache_dir(cache_dir))
        manifest[split][images.modality.value] = {
            "images": len(images), "paths": hash_of_lines(images.paths), "files": hash_of_lines(sizes) if sizes else "",
            "contents": hash_of_lines(contents) if contents else ""}
    return manifest


def manifest_differences(found, expected, splits=("train", "test")):
    """Name what differs between two manifests, in phrases; none if they may describe the same data."""
    differences = []
    for split in splits:
        for modality in sorted(expected[split].keys() | found[split].keys()):
            ours, theirs = (side[split].get(modality, {"images": 0, "paths": "", "files": ""})
                            for side in (found, expected))
            what = f"{split} {modality} images"
            if ours["images"] != theirs["images"]:
                differences.append(f"{ours['images']:,} {what} instead of {theirs['images']:,}")
            elif ours["paths"] != theirs["paths"]:
                differences.append(f"{what} of other names or in another order")
            elif _differ(ours, theirs, "files"):
                differences.append(f"{what} of other sizes")
            elif _differ(ours, theirs, "contents"):
                differences.append(f"{what} of other contents")
    return differences


def _differ(ours, theirs, what):
    """Tell whether two sets are known to differ: images that come from an array, and older files, do not say."""
    return bool(ours.get(what) and theirs.get(what) and ours[what] != theirs[what])
