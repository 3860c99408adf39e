"""How far links and labels can carry a method: training that is told the identities. A diagnosis, not a result.

    python tools/bounds.py links  train_prepare [--config_file configs/demo.yml] [--fresh] [KEY VALUE ...]
    python tools/bounds.py labels train_prepare [--config_file configs/demo.yml] [--fresh] [KEY VALUE ...]

`links` clusters as ever, but links each cluster with the one of the other modality that shows the same person, by the
most frequent person of each. `labels` trains on the identities themselves in place of clusters, linked in the same
way; rpnr calibrates them as it does clusters.
train_clip in place of train_prepare does so in the fine-tune; run train_prepare first, with the same words. Results lie
in OUTPUT_DIR-true-links or OUTPUT_DIR-true-labels, with a file BOUND.txt that says what they are. The same command
again resumes.

No setting of the training scripts does this: identities reach training through this tool alone.
"""
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402


def parse_arguments():
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("bound", choices=("links", "labels"))
    parser.add_argument("script", choices=("train_prepare", "train_clip"))
    parser.add_argument("--config_file", help="a .yml file with settings that differ from configs/defaults.py")
    parser.add_argument("--fresh", action="store_true", help="start over; old files are kept")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="single settings, as in SEED 2")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import numpy as np  # noqa: E402

import processor.train  # noqa: E402
from clustering.quality import known_persons, majority  # noqa: E402
from configs.defaults import load_config  # noqa: E402
from data.registry import open_dataset  # noqa: E402
from loss.association import Links  # noqa: E402
from report.run_files import BOUND_FILE  # noqa: E402
from utils.modality import Modality  # noqa: E402

NOTE = "Trained with true {}: the identities of the training images were used. A bound for comparison, not a result.\n"


def true_links(labels, persons):
    """Link each cluster with the cluster of the other modality that shows its most frequent person.

    Where several show the same person, the one with most images of it is the partner.

    Args: labels: Modality -> (N,) clusters, -1 is in none; persons: Modality -> (N,). Returns: `Links`.
    """
    shown = {m: majority(labels[m], persons[m]) for m in Modality}
    largest = {}
    for m, (people, counts) in shown.items():
        order = np.argsort(counts, kind="stable")                   # of one person the last, largest one stays
        largest[m] = {person: cluster for person, cluster in zip(people[order].tolist(), order)}
    return Links(*(np.array([largest[m.other].get(person, -1) for person in shown[m][0].tolist()]) for m in Modality))


def told(start, bound, persons, embedded, labels, *rest, **named):
    """Start an epoch's memory with true links, and, if asked, true labels. Args: start: the loop's `start_memory`."""
    if bound == "labels":
        labels = {m: np.unique(persons[m], return_inverse=True)[1] for m in Modality}
    return start(embedded, labels, *rest, links=true_links(labels, persons), **named)


def main():
    """Run a training script that is told the identities."""
    arguments = parse_arguments()
    config = load_config(arguments.config_file, arguments.overrides)
    persons = known_persons(open_dataset(config.DATASET.NAME, config.DATASET.ROOT, config.DATASET.TRIAL,
                                         config.DATASET.CHECK_COUNTS).train)
    if persons is None:
        raise UserError(f"the training images in {config.DATASET.ROOT} name fewer than two persons; a bound needs "
                        "their identities")
    folder = Path(f"{config.OUTPUT_DIR}-true-{arguments.bound}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BOUND_FILE).write_text(NOTE.format(arguments.bound))
    start, words = processor.train.start_memory, sys.argv
    processor.train.start_memory = partial(told, start, arguments.bound, persons)
    sys.argv = [f"{arguments.script}.py", *(["--config_file", arguments.config_file] if arguments.config_file else []),
                *["--fresh"] * arguments.fresh, *arguments.overrides, "OUTPUT_DIR", str(folder)]
    try:
        import_module(arguments.script).main()
    finally:
        processor.train.start_memory, sys.argv = start, words


if __name__ == "__main__":
    exit_on_user_error(main)
