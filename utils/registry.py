"""Classes that a registry names by their path, so that names can be read long before anything heavy is imported."""
from importlib import import_module


def class_at(path):
    """Return the class at a path "module:class", importing its module."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
