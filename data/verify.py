"""Find what can be wrong with a data set on disk, before anything is trained on it."""
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.cache import CacheFiles
from data.images import in_parallel, pixel_range, stored_image
from data.manifest import file_hash, grey_range, range_line
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


def verify(data, check_counts=True, cache_dir="", ir_range=()):
    """Compare counts, read every image file and cache, look for duplicates and for what lies in the folders besides.

    Args: data: `DataSet`, opened without a check of its counts; check_counts: other counts than published are wrong,
        where the data set insists on them; cache_dir, ir_range: as `data.manifest.data_manifest`.
    Returns: lines to read; and phrases on what makes the data set unfit.
    """
    files = in_parallel(_read, [(data.root, path, split, images.modality) for split, images in data.sets()
                                if not images.array for path in images.paths], "reading images")
    broken = [file for file in files if file.problem]
    groups = {}
    for file in files:
        groups.setdefault(file.digest or file.path, []).append(file)
    leaks, repeats = ([f"{group[0].path} = {group[-1].path}" for group in groups.values() if len(group) > 1
                       and (len({file.split for file in group}) > 1) == across] for across in (True, False))
    ignored, empty = _besides(data)
    pixels, faults = _pixels([file for file in files if file.mode], ir_range)
    altered = [path for split, images in data.sets()
               if (path := CacheFiles(data.cache_dir(cache_dir), split, images.modality.value).altered(digests=True))]
    lines = [*count_table(data, check_counts), *data.notes, *pixels,
             *_finding("{} images do not decode", [file.problem for file in broken]),
             *_finding("{} groups of identical files within a split", repeats),
             *_finding("{} groups of identical files in training and test", leaks),
             *_finding("{} other files, which are ignored", ignored), *_finding("{} empty folders", empty)]
    problems = (data.differences() if check_counts and data.counts_bind else []) + faults
    if broken:
        problems.append(f"{len(broken)} images that do not decode, such as {broken[0].path}")
    if leaks:
        problems.append(f"{len(leaks)} images that are in training and test, such as {leaks[0]}")
    if altered:
        problems.append(f"decoded images that were altered or cut off since they were written, {altered[0]}; remove "
                        "them")
    return lines, problems


def _pixels(files, ir_range):
    """Say which modes and values the readable images of each modality have: lines, and phrases on what is unfit."""
    lines, faults = [], []
    for m in Modality:
        of_modality = [file for file in files if file.modality is m]
        for mode, count in Counter(file.mode for file in of_modality).most_common():
            values = np.array([file.values for file in of_modality if file.mode == mode])
            lines.append(f"{m.value} images stored in mode {mode}: {count:,}, values {values[:, 0].min():g} to "
                         f"{values[:, 1].max():g}")
        constant = [file.path for file in of_modality if file.values[0] == file.values[1]]
        lines += _finding(f"{{}} {m.value} images of one value throughout", constant)
        if constant and len(constant) == len(of_modality):
            faults.append(f"{m.value} images that show nothing: each has one value throughout")
        elif deep := grey_range([file.values for file in of_modality], m, ir_range):
            lines.append(range_line(deep, m))
    return lines, faults


def count_table(data, check_counts=True):
    """Tabulate what, found, expected and a mark where they differ; then persons and images per camera; in lines."""
    expected = data.published if check_counts else {}
    rows = [(what, number, expected.get(what)) for what, number in data.measured().items()]
    for split, images in data.sets():
        for camera, size in zip(*np.unique(images.cameras, return_counts=True)):
            persons = len(np.unique(images.persons[images.cameras == camera]))
            rows.append((f"{split} {images.modality.value}, camera {camera}: {persons} persons", int(size), None))
    width = max(len(row[0]) for row in rows)
    return [f"{'':<{width}}{'found':>9}{'expected':>10}",
            *(f"{what:<{width}}{found:>9,}" + (f"{wanted:>10,}" + ("" if found == wanted else "  differs")
                                               if wanted is not None else "") for what, found, wanted in rows)]


def _read(job):
    root, path, split, modality = job
    try:
        image = stored_image(root / path)
        return ImageFile(path, split, modality, image.mode, pixel_range(image), file_hash(root / path))
    except UserError as error:
        return ImageFile(path, split, modality, problem=str(error))


def _besides(data):
    """List the files that lie beside images without being listed, and the empty folders beside the images' folders."""
    listed = {path for _, images in data.sets() for path in images.paths}
    folders = {Path(path).parent for _, images in data.sets() if not images.array for path in images.paths}
    ignored, empty = [], []
    for parent in sorted({folder.parent for folder in folders}):
        for folder in sorted((data.root / parent).iterdir()):
            inside = sorted(folder.iterdir()) if folder.is_dir() else []
            relative = folder.relative_to(data.root)
            if folder.is_dir() and not inside:
                empty.append(str(relative))
            if relative in folders:
                ignored += [str(relative / path.name) for path in inside
                            if (relative / path.name).as_posix() not in listed]
    return ignored, empty


def _finding(sentence, examples):
    """Write a line with the number of examples and the first of them; none if there are none."""
    if not examples:
        return []
    more = f", and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return [f"{sentence.format(len(examples))}: {'; '.join(examples[:SHOWN])}{more}"]
