"""What a setting may be, and the settings of several runs beside one another."""
import math
from typing import NamedTuple


class Range(NamedTuple):
    """Numbers from low to high; whole: integers alone; above: low itself is left out."""

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False

    def __str__(self):
        kind = "a whole number" if self.whole else "a number"
        start = f"{kind} {'above' if self.above else 'from'} {self.low:,}"
        return start + (" on" * (not self.above) if self.high == math.inf else
                        f"{', at most' if self.above else ' to'} {self.high:,}")


class Setting(NamedTuple):
    """A setting that a part of the program declares beside its code: name, default, what is allowed, what it does.

    Args: allowed: a tuple of choices or a `Range`; text: one line for the page of settings.

    Example:
        >>> check(Setting("TEMPERATURE", 0.05, Range(0, 10, above=True), "divides cosine similarities"), 0)
        'expected a number above 0, at most 10'
        >>> check(Setting("GRADIENTS", "exact", ("exact", "released"), "of the memory's losses"), "exakt")
        'expected exact or released'
    """

    name: str
    default: object
    allowed: object
    text: str


def check(setting, value):
    """Return None if a setting may have a value, else "expected ...", the end of an error message.

    True and False are no numbers, and 1.0 is no whole number.
    """
    allowed = setting.allowed
    if isinstance(allowed, Range):
        kinds = (int,) if allowed.whole else (int, float)
        fits = type(value) in kinds and math.isfinite(value) and allowed.low <= value <= allowed.high and not (
            allowed.above and value == allowed.low)
        return None if fits else f"expected {allowed}"
    if any(type(value) is type(choice) and value == choice for choice in allowed):
        return None
    return f"expected {' or '.join(str(choice) for choice in allowed)}"


def flat(tree, prefix=""):
    """Flatten nested dicts to {"SECTION.KEY": value}."""
    keys = {}
    for key, value in tree.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return keys


def differing_keys(settings):
    """List the keys whose values are not the same in all of several flat dicts, sorted."""
    keys = sorted({key for found in settings for key in found})
    return [key for key in keys if len({repr(found.get(key)) for found in settings}) > 1]
