"""Compare what was loaded from a file with what it should hold: one place that turns a difference into a sentence.

A check is a function `check(value, where)` that raises `Misfit`; the functions here build checks from one another, as
in `record({"epoch": whole(1), "state_dict": table(tensor())})`. `must_fit` runs one and says what is wrong.
"""
import contextlib
import json
import reprlib

import torch

from utils.errors import UserError, in_brief, is_out_of_memory

LARGEST = 1e39              # of a number in a file: just beyond fp32
MOST = 10 ** 9              # of a count: epochs, images, clusters
DEEPEST, ENTRIES = 30, 1_000_000        # of plain content: containers in one another, entries in all
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
WEIGHTS = FLOATS | {torch.int64, torch.int32}       # of a state dict: it counts batches too
LARGEST_CLAIM = 2 ** 32     # bytes of tensors that a file claims and does not hold
LONGEST_TEXT = 20_000_000   # characters of a text; the pictures of a page are texts


class Misfit(Exception):
    """A part of a structure is not what it should be. Args: where: its name; value: what was found; expected."""

    def __init__(self, where, value, expected):
        super().__init__(f"{_shown(value)}{f' as {where}' if where else ''}; expected {expected}")


def must_fit(value, check, what, remedy):
    """Return value if a check lets it pass. Args: what: the file, for the sentence; remedy: its last part.

    Raises: UserError: names the part that does not fit.
    """
    try:
        check(value, "")
    except Misfit as misfit:
        raise UserError(f"{what} holds {misfit}. {remedy}")
    return value


@contextlib.contextmanager
def understood(what, remedy):
    """Turn whatever goes wrong while the content of a file is put to use into a sentence.

    The net below `must_fit`. Args: as there. Raises: UserError.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        found = f"{type(error).__name__}: {in_brief(error)}"
        raise UserError(f"{what} holds something else than expected ({found}). {remedy}")


def _shown(value):
    """Describe a value in a few words."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} and shape {tuple(value.shape)}"[:120]
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__} of {len(value)} entries"
    try:
        return f"{reprlib.repr(value)[:80]} ({type(value).__name__})"
    except ValueError:      # Python does not write whole numbers of thousands of digits
        return f"a number of {value.bit_length():,} bits"


def _single(fits, expected):
    """Make a check from a function that tells whether a value fits, and from words for what fits."""
    def check(value, where):
        if not fits(value):
            raise Misfit(where, value, expected)
    return check


flag = _single(lambda value: type(value) is bool, "True or False")
text = _single(lambda value: isinstance(value, str) and len(value) <= LONGEST_TEXT, "text")


def whole(low=0, high=MOST):
    """Let whole numbers from low to high pass."""
    return _single(lambda value: type(value) is int and low <= value <= high,
                   f"a whole number from {low:,} to {high:,}")


def real(low=-LARGEST, high=LARGEST):
    """Let finite numbers from low to high pass."""
    bounds = "a finite number" if high == LARGEST and low == -LARGEST else f"a number from {low:,.16g} to {high:,.16g}"
    return _single(lambda value: type(value) in (int, float) and low <= value <= high, bounds)     # NaN never is


def one_of(*choices):
    """Let some values pass, and no others."""
    return _single(lambda value: any(type(value) is type(choice) and value == choice for choice in choices),
                   " or ".join(map(repr, choices)))


def anything(value, where):
    """Let everything pass."""


def maybe(check):
    """Let None pass, and what a check lets pass."""
    return either(check, one_of(None))


def either(*checks):
    """Let pass what any of several checks lets pass."""
    def check_either(value, where):
        misfits = []
        for check in checks:
            try:
                return check(value, where)
            except Misfit as misfit:
                misfits.append(misfit)
        raise misfits[0]
    return check_either


def record(required, optional=None, others=None):
    """Let dicts with certain keys pass.

    Args: required, optional: key -> check; others: check of the values of further keys, which are refused if None.
    """
    known = {**required, **(optional or {})}

    def check(value, where):
        if not isinstance(value, dict):
            raise Misfit(where, value, f"a dict with {', '.join(list(required)[:6])}" if required else "a dict")
        for key in required:
            if key not in value:
                raise Misfit(f"{where or 'its content'}, which lacks {key}", value, f"{key} in it")
        for key, entry in value.items():
            inner = known.get(key, others) if isinstance(key, (str, int)) else None
            if inner is None:
                raise Misfit(where, key, f"no other keys than {', '.join(map(str, list(known)[:10]))}")
            inner(entry, join(where, key))
    return check


def table(check, keys=str, least=0):
    """Let dicts pass whose keys are of a type and whose values fit. Args: least: number of entries."""
    def check_table(value, where):
        if not isinstance(value, dict) or len(value) < least:
            raise Misfit(where, value, f"a dict of {least} or more entries" if least else "a dict")
        for key, entry in value.items():
            if not isinstance(key, keys):
                raise Misfit(f"a key of {where}", key, f"a name ({keys.__name__})")
            check(entry, join(where, key))
    return check_table


def listing(check, length=None):
    """Let lists pass whose entries fit. Args: length: how many, or any number if None."""
    def check_listing(value, where):
        if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
            raise Misfit(where, value, "a list" if length is None else f"a list of {length} entries")
        for position, entry in enumerate(value):
            check(entry, f"entry {position} of {where or 'the list'}")
    return check_listing


def sequence(checks):
    """Let lists pass of which each entry passes its own check."""
    def check_sequence(value, where):
        listing(anything, len(checks))(value, where)
        for position, (entry, check) in enumerate(zip(value, checks)):
            check(entry, f"entry {position} of {where or 'the list'}")
    return check_sequence


def tensor(shape=None, dtype=None, low=None, high=None, finite=False):
    """Let tensors pass.

    Args: shape: sizes, None for any size (a tuple with None in it: any in that place); dtype: a torch dtype or a set of
        them; low, high: bounds of all values; finite: neither NaN nor Inf.
    """
    dtypes = None if dtype is None else dtype if isinstance(dtype, (set, frozenset)) else {dtype}
    names = "" if dtypes is None else f" of {' or '.join(sorted(str(d).removeprefix('torch.') for d in dtypes))}"
    sizes = "" if shape is None else f" of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
    expected = f"a tensor{names}{sizes}"

    def check(value, where):
        if (not isinstance(value, torch.Tensor) or dtypes is not None and value.dtype not in dtypes
                or shape is not None and (value.dim() != len(shape) or any(
                    n not in (None, found) for n, found in zip(shape, value.shape)))):
            raise Misfit(where, value, expected)
        if finite and not torch.isfinite(value).all():
            raise Misfit(f"{where}, in which is NaN or Inf", value, "finite numbers")
        if value.numel() and (low is not None and value.min() < low or high is not None and value.max() > high):
            raise Misfit(f"{where}, with values from {value.min()} to {value.max()}", value,
                         f"values from {low} to {high}")
    return check


def join(where, key):
    """Name an entry of a structure."""
    key = str(key)[:80]
    return f"{where}.{key}" if where else key


def check_plain(content, where=""):
    """Let containers, numbers, texts and whole tensors on the host pass: what a file of ours or of the field holds.

    Containers that hold themselves, tensors that stand for gigabytes which the file does not hold (one number, repeated
    by a stride of 0), and sparse or quantised ones are refused. Raises: Misfit.
    """
    left, entries, claimed = [(content, where, 0)], 0, 0
    while left:
        value, name, depth = left.pop()
        entries += 1
        if entries > ENTRIES or depth > DEEPEST:
            raise Misfit(name[:120], value, f"at most {ENTRIES:,} entries and {DEEPEST} containers in one another")
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
                raise Misfit(name, value, "a dense tensor with its data")
            claimed += max(0, value.numel() * value.element_size() - value.untyped_storage().nbytes())
            if claimed > LARGEST_CLAIM:
                raise Misfit(name, value, "tensors whose data the file holds")
        elif isinstance(value, dict):
            left += [(entry, join(name, key), depth + 1) for key, entry in value.items()]
        elif isinstance(value, (list, tuple)):
            left += [(entry, name, depth + 1) for entry in value]


def jsonable(value, where):
    """Let pass what JSON can hold: text, numbers, True, False, None, lists and dicts of them by text."""
    if isinstance(value, dict):
        table(jsonable)(value, where)
    elif isinstance(value, (list, tuple)):
        listing(jsonable)(value, where)
    elif type(value) in (int, float):
        real()(value, where)
    elif value is not None and type(value) is not bool:
        text(value, where)


def finite_json(words):
    """Parse JSON text without NaN and Infinity. Raises: ValueError: it is damaged or nested without end."""
    def refuse(word):
        raise ValueError(f"{word} is no number")
    try:
        return json.loads(words, parse_constant=refuse)
    except RecursionError:
        raise ValueError("lists in one another without end")
