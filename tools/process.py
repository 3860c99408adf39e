"""Verify a data set and cache its decoded images.

    python tools/process.py --dataset sysu --root dataset/SYSU-MM01              counts, then the cache
    python tools/process.py --dataset sysu --root dataset/SYSU-MM01 --check      every file, writes nothing
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, existing, exit_on_user_error, real_number, shown, whole_number  # noqa: E402

SIDE = whole_number(1, 10_000)      # pixels


def parse_arguments(arguments=None):
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("--dataset", required=True, help="a name that DATASET.NAME may have")
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--trial", type=whole_number(1, 1_000_000), default=1,
                        help="the split, for data sets that have several")
    parser.add_argument("--check", action="store_true",
                        help="read every image, look for duplicates and strays, print counts; writes nothing")
    parser.add_argument("--height", type=SIDE, default=288)
    parser.add_argument("--width", type=SIDE, default=144)
    parser.add_argument("--cache_dir", default="", help="where the cache is; default: ROOT")
    parser.add_argument("--ir_range", type=real_number(-1e9, 1e9), nargs=2, default=(), metavar=("LOW", "HIGH"),
                        help="DATASET.IR_RANGE: values of infrared images of more than 8 bits that become black and "
                        "white; default: the least and greatest in all of them")
    parser.add_argument("--allow-partial", "--allow_partial", action="store_true",
                        help="do not compare counts with the published ones")
    options = parser.parse_args(arguments)
    if options.dataset != "demo":       # which is drawn
        existing("folder", f"that of the data set {options.dataset}")(options.root)
    return options


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

from data.images import in_parallel, open_banks, range_line, stored_image  # noqa: E402
from data.manifest import data_manifest, file_facts, grey_range_of  # noqa: E402
from data.registry import open_dataset  # noqa: E402
from utils.modality import Modality  # noqa: E402

SHOWN = 5       # examples per finding


def main(arguments=None):
    """Check or cache the data set that the command line names. Raises UserError: something is wrong with it."""
    arguments = parse_arguments(arguments)
    check_counts, ir_range = not arguments.allow_partial, arguments.ir_range
    if ir_range and not ir_range[0] < ir_range[1]:
        raise UserError(f"--ir_range is {ir_range[0]:g} {ir_range[1]:g}; expected the lower value first. Exchange them")
    # --check opens without a check of counts, which it prints in full before it complains
    data = open_dataset(arguments.dataset, arguments.root, arguments.trial, check_counts and not arguments.check)
    if arguments.check:
        lines, problems = verify(data, check_counts, ir_range)
        print(shown("\n".join(lines)))
        if problems:
            raise UserError(f"{data.root} holds {'; '.join(problems)}. Restore the files of the original data "
                            "set (--allow-partial accepts other counts)")
        print(shown(f"{data.name} in {data.root} is in order"))
        return
    print(shown("\n".join((*data.counts(), *data.notes))))
    manifest = data_manifest(data, arguments.cache_dir, ir_range)
    for split in manifest:
        open_banks(data, split, manifest, arguments.height, arguments.width, arguments.cache_dir)
    cache = data.cache_dir(arguments.cache_dir)
    print(shown(f"cache of {arguments.height} x {arguments.width} images is in {cache}"))


def verify(data, check_counts=True, ir_range=()):
    """Compare counts, read every image file, look for duplicates and for what lies in the folders besides.

    Args: data: `DataSet`, opened without a check of its counts; check_counts: other counts than published are wrong,
        where the data set insists on them; ir_range: as `data.manifest.data_manifest`.
    Returns: lines to read; and phrases on what makes the data set unfit.
    """
    files = [(split, images.modality, path) for split, images in data.sets() for path in images.paths]
    groups, broken, deep = {}, {}, {m: [] for m in Modality}
    found = in_parallel(lambda file: read(data.root / file[-1]), files, "reading images")
    for (split, m, path), (digest, values, problem) in zip(files, found):
        if problem:
            broken[path] = problem
        else:
            groups.setdefault(digest, []).append((split, path))
            deep[m] += [values] if values else []
    leaks, repeats = [], []
    for group in groups.values():
        if len(group) > 1:
            across = len({split for split, _ in group}) > 1
            (leaks if across else repeats).append(f"{group[0][1]} = {group[-1][1]}")
    listed = {data.root / path for *_, path in files}
    ignored = sorted(str(path.relative_to(data.root)) for folder in {path.parent for path in listed}
                     for path in folder.iterdir() if path not in listed)
    differences = data.differences() if check_counts else []
    lines = [*data.counts(), *data.notes, *_finding("counts differ from the published ones", differences),
             *(range_line(grey_range_of(values, m, ir_range), m) for m, values in deep.items() if values),
             *_finding("images do not decode", list(broken.values())),
             *_finding("groups of identical files within a split", repeats),
             *_finding("groups of identical files in training and test", leaks),
             *_finding("other files, which are ignored", ignored)]
    problems = [*differences] if data.counts_bind else []
    if broken:
        problems.append(f"{len(broken)} images that do not decode, such as {next(iter(broken))}")
    if leaks:
        problems.append(f"{len(leaks)} images that are in training and test, such as {leaks[0]}")
    return lines, problems


def read(path):
    """Decode an image file: its SHA-256, its `pixel_range` if it has more than 8 bits, and what is wrong with it."""
    try:
        stored_image(path)
        return *file_facts(path), ""
    except UserError as error:
        return "", None, str(error)


def _finding(sentence, examples):
    """Write a line with the number of examples and the first of them; none if there are none."""
    if not examples:
        return []
    more = f", and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return [f"{len(examples)} {sentence}: {'; '.join(examples[:SHOWN])}{more}"]


if __name__ == "__main__":
    exit_on_user_error(main)
