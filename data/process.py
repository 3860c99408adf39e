"""Verify a data set and cache its decoded images.

    python data/process.py --dataset sysu --root dataset/SYSU-MM01 [--allow-partial]
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # the script lies one folder below the imports

from data.images import open_bank  # noqa: E402
from data.registry import OPENERS, open_dataset  # noqa: E402
from utils.errors import exit_on_user_error  # noqa: E402


def main():
    """Run what the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, choices=sorted(OPENERS))
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--trial", type=int, default=1, help="the split, for data sets that have several")
    parser.add_argument("--height", type=int, default=288)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--cache_dir", default="", help="where to write the cache; default: ROOT")
    parser.add_argument("--allow-partial", action="store_true", help="do not compare counts with the published ones")
    arguments = parser.parse_args()
    data = open_dataset(arguments.dataset, arguments.root, arguments.trial, not arguments.allow_partial)
    for what, persons, images in data.counts():
        print(f"{data.name} {what}: {persons} persons, {images} images")
    folder = arguments.cache_dir or data.cache_dir
    for split in ("train", "test"):
        for images in getattr(data, split).values():
            open_bank(images, data.root, folder, split, arguments.height, arguments.width)
    print(f"cache of {arguments.height} x {arguments.width} images is in {folder}")


if __name__ == "__main__":
    exit_on_user_error(main)
