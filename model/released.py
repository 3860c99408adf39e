"""The released checkpoint format: its names for our weights."""

# our prefix, released prefix, how the names behind it start (the released file holds whole, mostly unused copies)
MAPPING = (
    ("stems.rgb.", "visible_module.visible.", ("conv", "bn")),
    ("stems.ir.", "thermal_module.thermal.", ("conv", "bn")),
    ("trunk.", "base_resnet.base.", ("layer",)),
    ("attnpool.", "base_resnet.base.attnpool.", ("",)),
    ("neck.", "bottleneck.", ("",)),
)


def released_name(our_name):
    """The released name of one of our weights: "trunk.layer1.0.bn1.bias" -> "base_resnet.base.layer1.0.bn1.bias".

    Raises: KeyError: `CCLNet` has no such weight.
    """
    for ours, released, starts in MAPPING:
        rest = our_name.removeprefix(ours)
        if rest != our_name and rest.startswith(starts):
            return released + rest
    raise KeyError(our_name)


def our_name(released_name):
    """Our name of a released weight; None for those that the image side does not use."""
    for ours, released, starts in MAPPING:
        rest = released_name.removeprefix(released)
        if rest != released_name and rest.startswith(starts):
            return ours + rest
    return None
