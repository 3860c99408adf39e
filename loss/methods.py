"""The methods by name (MEMORY.METHOD): what is done with the links between clusters of the two modalities.

The configuration reads the names, long before anything heavy is imported: so the classes stand here by their path.
"""
from utils.registry import class_at

METHODS = {     # name -> module:class, a subclass of loss.cross_memory.CrossMemory
    "cclnet": "loss.cclnet:CCLNetMemory",
    "pgm": "loss.pgm:PGM",
    "rpnr": "loss.rpnr:RPNR",
    "none": "loss.cross_memory:CrossMemory",
}


def method_class(name):
    """Return the class of a method."""
    return class_at(METHODS[name])
