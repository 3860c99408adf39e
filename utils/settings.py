"""Settings: how one is declared, how its value is checked, and settings of several runs beside one another."""
import math
from dataclasses import dataclass
from typing import NamedTuple

from utils.errors import UserError, quoted


class Range(NamedTuple):
    """Numbers from low to high. Args: whole: whole numbers alone; above: low itself is not among them."""

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False

    def __contains__(self, value):
        return self.low <= value <= self.high and value < math.inf and not (self.above and value == self.low)

    def __str__(self):
        kind = "a whole number" if self.whole else "a number"
        if self.high == math.inf:
            return f"{kind} above {self.low:,}" if self.above else f"{kind} from {self.low:,} on"
        return f"{kind} {'above' if self.above else 'from'} {self.low:,}{', up' if self.above else ''} to {self.high:,}"


@dataclass(frozen=True)
class Accepted:
    """Values that a function accepts. Args: text: which these are, as part of a sentence."""

    text: str
    accepts: object

    def __contains__(self, value):
        try:
            return self.accepts(value)
        except (TypeError, ValueError):     # entries that cannot be compared, or not taken apart
            return False

    def __str__(self):
        return self.text


class Setting(NamedTuple):
    """A setting: its default tells the type, so write 1.0 where 0.5 is allowed too.

    `allowed` is a `Range`, a tuple of choices, `Accepted`, or a part of a sentence where any text will do, or any but
    none.

    Example:
        >>> known = {"K1": Setting("K1", 30, Range(1, whole=True), "neighbours that count as near")}
        >>> check_values("the command line", known, {"K1": 0})
        Traceback (most recent call last):
        utils.errors.UserError: the command line sets K1 to 0; expected a whole number from 1 on, such as 30
    """

    name: str
    default: object
    allowed: object
    text: str


def check_values(source, settings, values):
    """Refuse values that settings cannot have.

    Args: source: of the values, for the sentence; settings, values: by name.
    Raises: UserError: a value is of another type than the default, or not allowed.
    """
    for name, value in values.items():
        default, allowed = settings[name].default, settings[name].allowed
        if type(value) is not type(default) or not (
                value != "" or default == "" if isinstance(allowed, str) else value in allowed):
            if type(allowed) is tuple:
                allowed = " or ".join(str(choice) or "''" for choice in allowed)
            example = "" if "such as" in str(allowed) else f", such as {default!r}"
            raise UserError(f"{source} sets {name} to {quoted(str(value)[:80])}; expected {allowed}{example}")


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
