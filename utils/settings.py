"""Settings of several runs beside one another."""


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
