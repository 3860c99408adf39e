"""The towers by name (MODEL.TOWER, and the kind that a checkpoint tells): what becomes of CLIP's image tower.

The configuration reads the names, long before anything heavy is imported: so the classes stand here by their path.
"""
from utils.errors import UserError
from utils.registry import class_at

TOWERS = {      # name -> module:class; one of weights of a ResNet, or of a transformer, is a subclass of the first two
    "resnet": "model.towers.towers:ResNetTower",
    "vit": "model.towers.towers:ViTTower",
}


def tower_class(name):
    """Return the class of a tower."""
    return class_at(TOWERS[name])


def towers_for(weights):
    """List the towers that weights can have: "resnet" or "vit", and their subclasses. Args: weights: of these two."""
    return [name for name in TOWERS if issubclass(tower_class(name), tower_class(weights))]


def choose_tower(visual, name=""):
    """Return the name of the tower that CLIP's image tower becomes.

    Args: visual: `load_clip(...).visual`; name: of TOWERS, "" for that of the weights' kind.
    Raises: UserError: the weights are of another kind than the tower.
    """
    weights = "vit" if hasattr(visual, "class_embedding") else "resnet"
    if name and name not in towers_for(weights):
        raise UserError(f"MODEL.TOWER is {name}, but the CLIP weights hold a {weights}; choose "
                        f"{' or '.join(towers_for(weights))}, or leave MODEL.TOWER out")
    return name or weights
