"""Which runs belong together, by their settings as flat dicts {"SECTION.KEY": value}."""
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
    """Name the group of every run by the settings in which the groups differ; runs of one group have the same name.

    What METHOD.NAME implies (a method's own defaults), and keys that only some groups have, are named where nothing
    else tells groups apart.

    Args: runs: [flat dict]; also: as in `group_key`.
    Returns: [text], as "CLUSTER.EPS 0.5, METHOD.NAME pgm"; "all runs" where there is one group.
    """
    groups = [group_key(settings, also) for settings in runs]
    every = differing_keys(groups)
    shared = [key for key in every if len({repr(group[key]) for group in groups if key in group}) > 1]
    own = [with_defaults({"METHOD.NAME": group["METHOD.NAME"]}) for group in groups]
    told = [key for key in shared if key == "METHOD.NAME" or not key.startswith("METHOD.")
            or any(group.get(key) != defaults.get(key) for group, defaults in zip(groups, own))]
    for keys in (told, shared, every):
        names = [", ".join(f"{key} {_shown(group.get(key, '–'))}" for key in keys if key in group or keys is every)
                 or "all runs" for group in groups]
        if len(set(names)) == len(set(map(repr, groups))):
            break
    return names


def label_differences(made, epoch, now):
    """Return the first setting with which train_prepare.py would make other pseudo labels: (as made, as now); None.

    Args: made, now: flat dicts; epoch: after which the labels were made.
    """
    made = {**made, "PREPARE.EPOCHS": epoch}
    keys = sorted(made.keys() & now.keys(), key=lambda key: (key != "METHOD.NAME", key))     # it implies others
    return next(((f"{key} {_shown(made[key])}", f"{_shown(now[key])}") for key in keys if made[key] != now[key]
                 and not key.startswith(("PROMPT.", "FINETUNE.", "TEST.")) and not may_change(key)), None)


def refuse_twins(runs):
    """Refuse two runs of one group with the same seed and trial: their mean would count one run twice.

    Args: runs: folder -> (name of its group, settings as a flat dict). Raises: UserError.
    """
    seen = {}
    for folder, (name, settings) in runs.items():
        other = seen.setdefault((name, *(settings.get(key) for key in REPEATS)), folder)
        if other != folder:
            raise UserError(f"{quoted(other)} and {quoted(folder)} are runs of the same settings, seed and data, so "
                            "that a mean would count one run twice; leave one of them out")


def _shown(value):
    return "(not set)" if value == "" else value
