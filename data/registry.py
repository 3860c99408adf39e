"""Open data sets by name. A new one is a module with a `load` and an entry here."""
from data import demo, llcm, regdb, sysu, table
from utils.errors import UserError

OPENERS = {"sysu": sysu.load, "regdb": regdb.load, "llcm": llcm.load, "demo": demo.load, "csv": table.load}


def open_dataset(name, root, trial=1, check_counts=True):
    """Open the `DataSet` of a name.

    Args: trial: the split, for data sets that have several; check_counts: compare with the published counts.
    Raises: UserError: unknown name, or what the data set's loader finds wrong.
    """
    if name not in OPENERS:
        raise UserError(f"data set {name!r} is unknown; choose {', '.join(OPENERS)}")
    return OPENERS[name](root, trial, check_counts)
