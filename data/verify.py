"""Find what can be wrong with a data set on disk, before anything is trained on it."""
from collections import Counter
from typing import NamedTuple

import numpy as np

from data.images import grey_range_of, in_parallel, pixel_range, range_line, stored_image
from utils.checkpoint import file_digest
from utils.errors import UserError
from utils.modality import Modality

SHOWN = 5       # examples per finding


class ImageFile(NamedTuple):
    """What reading one image file found."""

    path: str
    split: str
    modality: Modality
    mode: str = ""          # of Pillow, as stored: "RGB", "L", "I;16", ...
    values: tuple = ()      # `pixel_range`
    digest: str = ""        # of the file's bytes
    problem: str = ""       # "" if it decodes


def verify(data, check_counts=True, ir_range=()):
    """Compare counts, read every image file, look for duplicates and for what lies in the folders besides.

    Args: data: `DataSet`, opened without a check of its counts; check_counts: other counts than published are wrong,
        where the data set insists on them; ir_range: as `data.manifest.data_manifest`.
    Returns: lines to read; and phrases on what makes the data set unfit.
    """
    files = in_parallel(_read, [(data.root, path, split, images.modality) for split, images in data.sets()
                                for path in images.paths], "reading images")
    broken = [file for file in files if file.problem]
    groups = {}
    for file in files:
        groups.setdefault(file.digest or file.path, []).append(file)
    leaks, repeats = ([f"{group[0].path} = {group[-1].path}" for group in groups.values() if len(group) > 1
                       and (len({file.split for file in group}) > 1) == across] for across in (True, False))
    listed = {data.root / file.path for file in files}
    ignored = sorted(str(path.relative_to(data.root)) for folder in {path.parent for path in listed}
                     for path in folder.iterdir() if path not in listed)
    pixels, faults = _pixels([file for file in files if file.mode], ir_range)
    differences = data.differences() if check_counts else []
    lines = [*data.counts(), *data.notes, *_finding("counts differ from the published ones", differences), *pixels,
             *_finding("images do not decode", [file.problem for file in broken]),
             *_finding("groups of identical files within a split", repeats),
             *_finding("groups of identical files in training and test", leaks),
             *_finding("other files, which are ignored", ignored)]
    problems = (differences if data.counts_bind else []) + faults
    if broken:
        problems.append(f"{len(broken)} images that do not decode, such as {broken[0].path}")
    if leaks:
        problems.append(f"{len(leaks)} images that are in training and test, such as {leaks[0]}")
    return lines, problems


def _pixels(files, ir_range):
    """Say which modes and values the readable images of each modality have: lines, and phrases on what is unfit."""
    lines, faults = [], []
    for m in Modality:
        of_modality = [file for file in files if file.modality is m]
        for mode, count in Counter(file.mode for file in of_modality).most_common():
            values = np.array([file.values for file in of_modality if file.mode == mode])
            lines.append(f"{m.value} images stored in mode {mode}: {count:,}, values {values.min():g} to "
                         f"{values.max():g}")
        constant = [file.path for file in of_modality if file.values[0] == file.values[1]]
        lines += _finding(f"{m.value} images of one value throughout", constant)
        if constant and len(constant) == len(of_modality):
            faults.append(f"{m.value} images that show nothing: each has one value throughout")
        elif deep := grey_range_of([file.values for file in of_modality if file.mode[0] in "IF"], m, ir_range):
            lines.append(range_line(deep, m))
    return lines, faults


def _read(job):
    root, path, split, modality = job
    try:
        image = stored_image(root / path)
        return ImageFile(path, split, modality, image.mode, pixel_range(image), file_digest(root / path))
    except UserError as error:
        return ImageFile(path, split, modality, problem=str(error))


def _finding(sentence, examples):
    """Write a line with the number of examples and the first of them; none if there are none."""
    if not examples:
        return []
    more = f", and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return [f"{len(examples)} {sentence}: {'; '.join(examples[:SHOWN])}{more}"]
