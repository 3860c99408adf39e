"""Which runs belong together, by their settings as flat dicts {"SECTION.KEY": value}."""
import os
from pathlib import Path

from configs.defaults import with_defaults
from utils.errors import UserError, quoted
from utils.settings import differing_keys

# Settings that may differ when a run is resumed: they decide neither weights nor labels. An entry that ends in a dot
# is a section. DEVICE, COMPILE, CUDA_GRAPHS and TEST.BATCH_SIZE change the order of additions, so the last bits.
MAY_CHANGE = ("DEVICE", "COMPILE", "CUDA_GRAPHS", "OUTPUT_DIR", "PSEUDO_LABEL_DIR", "TEST.EVERY", "TEST.BATCH_SIZE",
              "LOG.", "DATASET.ROOT", "DATASET.CACHE_DIR", "DATASET.CACHE", "DATASET.CHECK_COUNTS",
              "PREPARE.ALLOW_COLLAPSE")
REPEATS = ("SEED", "DATASET.TRIAL")     # runs that differ in these alone repeat one experiment


def may_change(key):
    """Tell whether a run may be resumed with another value of a key."""
    return any(key.startswith(name) if name.endswith(".") else key == name for name in MAY_CHANGE)


def group_key(settings, also=()):
    """Return those settings of a run that decide what it is a run of; runs with equal ones belong together.

    Keys that the run does not name have their defaults. Left out are `REPEATS` and `MAY_CHANGE`.

    Args: settings: a flat dict; also: keys that count though they would be left out.
    """
    return {key: value for key, value in sorted(with_defaults(settings).items())
            if key in also or not (key in REPEATS or may_change(key))}


def group_names(runs, also=()):
    """Name the group of every run by its method and by what else differs; runs of one group have the same name.

    Named are the keys in which runs of the same method differ, and of those in which others differ the ones that do not
    have the method's default.

    Args: runs: [flat dict]; also: as in `group_key`.
    Returns: [text], as "pgm, CLUSTER.EPS 0.5".
    """
    groups = [group_key(settings, also) for settings in runs]
    of_method = {name: [group for group in groups if group["METHOD.NAME"] == name]
                 for name in {group["METHOD.NAME"] for group in groups}}
    within = {name: differing_keys(found) for name, found in of_method.items()}
    defaults = {name: with_defaults({"METHOD.NAME": name}) for name in of_method}
    every = [key for key in differing_keys(groups) if key != "METHOD.NAME"]
    return [", ".join([name, *(f"{key} {_shown(group.get(key, '–'))}" for key in every
                               if key in within[name] or group.get(key) != defaults[name].get(key))])
            for group, name in ((group, group["METHOD.NAME"]) for group in groups)]


def groups_of(runs, also=()):
    """Name the group of the run in every folder, as `group_names`: {folder: text}.

    Runs of equal settings, seed and trial may differ in their code. They are of two groups, each with the name of the
    folder that its runs lie in.

    Args: runs: folder (`Path`) -> its settings, a flat dict; also: as in `group_key`.
    Raises: UserError: two such runs lie in one folder, so that a mean would count one twice.
    """
    names, seen = dict(zip(runs, group_names(list(runs.values()), also))), {}
    parents = {folder: folder.resolve().parent for folder in runs}
    for folder, settings in runs.items():
        seen.setdefault((names[folder], *(settings.get(key) for key in REPEATS)), []).append(folder)
    for twins in seen.values():
        if len({parents[folder] for folder in twins}) < len(twins):
            raise UserError(f"{quoted(twins[0])} and {quoted(twins[1])} are runs of the same settings, seed and data, "
                            "so that a mean would count one run twice; leave one of them out")
    for name in {name for (name, *_), twins in seen.items() if len(twins) > 1}:
        alike = [folder for folder in runs if names[folder] == name]
        different = list(dict.fromkeys(parents[folder] for folder in alike))
        told = dict(zip(different, distinct_names(different)))
        names |= {folder: f"{name}, {told[parents[folder]]}" for folder in alike}
    return names


def distinct_names(paths):
    """Name different paths by the last of their parts in which all differ, or whole where there is none."""
    for parts in zip(*(reversed(Path(os.path.abspath(path)).parts) for path in paths)):
        if len(set(parts)) == len(paths):
            return list(parts)
    return list(map(str, paths))


def method_first(keys):
    """Sort keys, METHOD.NAME before all others, since it implies some of them."""
    return sorted(keys, key=lambda key: (key != "METHOD.NAME", key))


def label_differences(made, epoch, now):
    """Return the first setting with which train_prepare.py would make other pseudo labels: (as made, as now); None.

    Args: made, now: flat dicts; epoch: after which the labels were made.
    """
    made = {**made, "PREPARE.EPOCHS": epoch}
    return next(((f"{key} {_shown(made[key])}", f"{_shown(now[key])}")
                 for key in method_first(made.keys() & now.keys()) if made[key] != now[key]
                 and not key.startswith(("PROMPT.", "FINETUNE.", "TEST.")) and not may_change(key)), None)


def _shown(value):
    return "(not set)" if value == "" else value
