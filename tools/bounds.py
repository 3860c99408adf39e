"""Upper bounds: train with ground-truth links or identities, to see how much better linking or clustering could help.

    python tools/bounds.py links      train_prepare [--config_file configs/demo.yml] [--fresh] [KEY VALUE ...]
    python tools/bounds.py labels     train_prepare [--config_file configs/demo.yml] [--fresh] [KEY VALUE ...]
    python tools/bounds.py supervised train_prepare [--config_file configs/demo.yml] [--fresh] [KEY VALUE ...]

`links` clusters as ever, but links each cluster with the one of the other modality that shows the same person, by the
most frequent person of each. `labels` trains on the identities themselves in place of clusters, linked in the same way
where the method links as loss/links.py does (rpnr calibrates them, as it does clusters). `supervised` trains the
identity loss alone: one prototype per person, shared by both modalities. train_clip in place of train_prepare does so
in the fine-tune; run train_prepare first, with the same words. Results lie in OUTPUT_DIR-true-links, -true-labels or
-supervised. The same command again resumes. None of these results is unsupervised.

Each bound is a method that is told identities, METHOD.NAME cclnet-true-links and so on. No setting of the training
scripts does this: identities reach training through this tool alone.
"""
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, existing, exit_on_user_error  # noqa: E402


def parse_arguments():
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("bound", choices=("links", "labels", "supervised"))
    parser.add_argument("script", choices=("train_prepare", "train_clip"))
    parser.add_argument("--config_file", type=existing("file", "a .yml file such as configs/sysu.yml"),
                        help="a .yml file with settings that differ from the defaults")
    parser.add_argument("--fresh", action="store_true", help="start over; old files are kept")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="single settings, as in SEED 2")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import numpy as np  # noqa: E402
import torch  # noqa: E402

from clustering.quality import known_persons, majority  # noqa: E402
from configs.defaults import load_config  # noqa: E402
from data.registry import open_dataset  # noqa: E402
from loss.cluster_memory import MOMENTUM, TEMPERATURE, ClusterMemory, cluster_means  # noqa: E402
from loss.links import Links  # noqa: E402
from loss.method import Method  # noqa: E402
from loss.methods import METHODS  # noqa: E402
from utils.modality import Modality  # noqa: E402


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


def with_true_links(method, persons):
    """Make a method that links clusters as identities tell. Args: method: a class; persons: Modality -> (N,)."""
    if not hasattr(method, "link"):
        raise UserError(f"METHOD.NAME is that of {method.__name__}, which does not link clusters as a `LinkingMethod` "
                        "of loss/links.py does, so it cannot be told true links; choose another method or bound")

    class TrueLinks(method):
        def link(self, start):
            return true_links(start.labels, persons)
    return TrueLinks


def with_true_labels(method, persons):
    """Make a method that trains on identities in place of clusters. Args: as `with_true_links`."""
    identities = {m: np.unique(persons[m], return_inverse=True)[1] for m in Modality}

    class TrueLabels(with_true_links(method, persons) if hasattr(method, "link") else method):
        def start(self, start, epoch):
            return super().start(replace(start, labels=identities), epoch)
    return TrueLabels


def supervised(method, persons):
    """Make the method that trains the identity loss alone: cross entropy against one prototype per person.

    Args: as `with_true_links`; of the method only its settings are used, so that any configuration will do.
    """
    both = np.unique(np.concatenate(list(persons.values())), return_inverse=True)[1]
    identities = dict(zip(Modality, np.split(both, [len(persons[Modality.RGB])])))

    class Supervised(Method):
        SETTINGS = (TEMPERATURE, MOMENTUM, *method.declared())

        def unifies(self, epoch):
            return True

        def start(self, start, epoch):
            features = torch.cat([start.features["feature"][m] for m in Modality])
            self.memories = {"persons": ClusterMemory(cluster_means(features, both), self.settings.temperature,
                                                      self.settings.momentum)}
            return identities

        def losses(self, features, batch):
            return {f"id_{m.value}": self.memories["persons"].loss(features[m], batch.labels[m]) for m in Modality}

        def update(self, features, batch):
            for m in Modality:
                self.memories["persons"].update(features[m], batch.labels[m])
            return {}
    return Supervised


BOUNDS = {"links": ("{}-true-links", with_true_links), "labels": ("{}-true-labels", with_true_labels),
          "supervised": ("supervised", supervised)}


def main():
    """Run a training script with a method that is told the identities."""
    arguments = parse_arguments()
    config = load_config(arguments.config_file, arguments.overrides)
    persons = known_persons(open_dataset(config.DATASET.NAME, config.DATASET.ROOT, config.DATASET.TRIAL,
                                         config.DATASET.CHECK_COUNTS).train)
    if persons is None:
        raise UserError(f"the training images in {config.DATASET.ROOT} name fewer than two persons; a bound needs "
                        "their identities")
    name, told = BOUNDS[arguments.bound]
    name = name.format(config.METHOD.NAME)
    METHODS[name] = told(METHODS[config.METHOD.NAME], persons)
    folder = f"{Path(config.OUTPUT_DIR)}-{name.removeprefix(f'{config.METHOD.NAME}-')}"
    sys.argv = [f"{arguments.script}.py", *(["--config_file", arguments.config_file] if arguments.config_file else []),
                *["--fresh"] * arguments.fresh, *arguments.overrides, "METHOD.NAME", name, "OUTPUT_DIR", folder]
    import_module(arguments.script).main()


if __name__ == "__main__":
    exit_on_user_error(main)
