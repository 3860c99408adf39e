"""What the numbers of a test are of: the identity that is stored with them, and the folder that they lie in.

Two tests have one identity where the same checkpoint was tested on the same images in the same way: then their numbers
are the same, and one may replace the other. docs/files.md tells users the same.
"""
import hashlib
import json
import os
from pathlib import Path

# Settings that decide the numbers of a checkpoint on given images.
DECIDING = ("DATASET.NAME", "DATASET.TRIAL", "TEST.PROTOCOL", "TEST.TRIALS", "INPUT.HEIGHT", "INPUT.WIDTH",
            "INPUT.NORMALISATION", "MODEL.TOWER", "MODEL.STRIDE", "MODEL.ACTIVATION", "PRECISION",
            "TEST.MIRRORED")
BASELINE = "baseline"       # the untrained network: stands for the name of a checkpoint in the names of folders


def identity(checkpoint, images, mode, settings, galleries=()):
    """Return the identity of a test, a flat dict.

    Args: checkpoint: SHA-256 of the file, or of the untrained weights; images: `images_digest`; mode: as TEST.MODE;
        settings: of the test, a flat dict; galleries: of all trials, lists of positions.
    """
    return {"checkpoint": checkpoint, "images": images, "mode": mode, "galleries": _digest(galleries),
            **{key: settings[key] for key in DECIDING}}


def images_digest(manifest, split="test"):
    """Hash the images of a split. Args: manifest: `data.manifest.data_manifest`. Returns: hex digits."""
    return _digest(manifest[split])


def results_folder(output, path, tested):
    """Choose the folder of a test's results: tests/CHECKPOINT-PROTOCOL-MODE-IDENTITY beside the checkpoint.

    Untrained weights have theirs in `output`; in its tests/elsewhere, which no run is said to have made, lie those of a
    checkpoint on a hub or in a folder that cannot be written.

    Args: output: OUTPUT_DIR; path: of the checkpoint, "" for untrained weights; tested: the test's `identity`.
    """
    file = Path(path or BASELINE)
    beside = file.is_file() and os.access(file.parent, os.W_OK)
    parent = file.parent / "tests" if beside else Path(output, "tests", "elsewhere" if path else "")
    return parent / f"{file.stem}-{tested['TEST.PROTOCOL']}-{tested['mode']}-{_digest(tested)[:8]}"


def differences(tested, settings, images):
    """Name in a phrase what a test did not do as its run would have: "PRECISION bf16, other images"; "" for nothing.

    The protocol is no difference: results of several protocols stand apart anyway.

    Args: tested: `identity` of the test; settings, images: the run's; empty where they are not known.
    """
    others = [f"{key} {tested[key]}" for key in DECIDING
              if key != "TEST.PROTOCOL" and key in settings and settings[key] != tested.get(key, settings[key])]
    return ", ".join([*others, *(["other images"] if images and images != tested["images"] else [])])


def _digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
