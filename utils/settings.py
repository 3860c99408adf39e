"""Settings: how one is declared, how its value is checked, and settings of several runs beside one another."""
import math
from typing import NamedTuple


class Range(NamedTuple):
    """Numbers from low to high. Args: whole: whole numbers alone; above: low itself is not among them."""

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False

    def __contains__(self, value):
        return self.low <= value <= self.high and not (self.above and value == self.low)     # NaN lies nowhere

    def __str__(self):
        kind = "a whole number" if self.whole else "a number"
        if self.high == math.inf:
            return f"{kind} above {self.low:,}" if self.above else f"{kind} from {self.low:,} on"
        return f"{kind} {'above' if self.above else 'from'} {self.low:,}{', up' if self.above else ''} to {self.high:,}"


class Setting(NamedTuple):
    """A setting: its default tells the type.

    `allowed` is a `Range`, a tuple of choices, or a sentence part that says what is expected where anything of the
    default's type will do.

    Example:
        >>> check(Setting("K1", 30, Range(1, whole=True), "neighbours that count as near"), 0)
        'a whole number from 1 on'
    """

    name: str
    default: object
    allowed: object
    text: str


def check(setting, value):
    """Return what is expected of a setting where a value of the right type is not; None where it is fine."""
    if isinstance(setting.allowed, Range):
        return None if value in setting.allowed else str(setting.allowed)
    if isinstance(setting.allowed, str) or value in setting.allowed:
        return None
    return " or ".join(choice or repr(choice) for choice in setting.allowed)


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
