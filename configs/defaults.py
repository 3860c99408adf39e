"""The configuration of a run: defaults, then a .yml file, then KEY VALUE pairs, each key checked."""
import ast
import os
from difflib import get_close_matches

import yaml
from yacs.config import CfgNode

from configs.settings import PATHS, SETTINGS
from loss.methods import METHODS
from utils.errors import UserError, quoted
from utils.settings import check_values, flat

DEMO_ROOT = "dataset/demo"
LIKE = 0.7             # of 1: a name less like a key than that is no slip of the pen


def load_config(config_file=None, overrides=(), base=None):
    """Collect the settings of a run: a frozen CfgNode.

    Args:
        config_file: path of a .yml file with settings that differ from the defaults.
        overrides: KEY VALUE words of the command line, or KEY=VALUE.
        base: settings to begin with in place of the defaults, those of a checkpoint
            (`configs.checkpoint.settings_of`), nested or flat; keys of it that are unknown today are left out.

    Raises:
        UserError: unreadable file, unknown key (names the nearest), wrong type or value.

    Example:
        >>> load_config("configs/demo.yml", ["CLUSTER.EPS", "0.5"]).CLUSTER.EPS
        0.5
    """
    layers = [(config_file, _read_yaml(config_file))] if config_file else []
    layers.append(("the command line", _pairs(overrides)))
    stored = flat(base or {})
    if stored.get("METHOD.NAME") not in METHODS:        # of another project, or told identities
        stored = {name: value for name, value in stored.items() if not name.startswith("METHOD.")}
    known = _known([stored, *(layer for _, layer in layers)])
    stored = {name: value for name, value in stored.items() if name in known}
    check_values("the checkpoint", known, stored)
    values = {name: setting.default for name, setting in known.items()} | stored
    for source, layer in layers:
        for name in layer:
            if name not in known:
                near, of = _nearest(name, known), [other for other, method in METHODS.items() if name in {
                    f"METHOD.{setting.name}" for setting in method.declared()}]
                told = f"METHOD.NAME {' or '.join(of)} has it. " if of else f"did you mean {near}? " if near else ""
                raise UserError(f"{source} has the unknown key {name}; {told}docs/settings.md lists all keys")
        typed = {name: _typed(known[name], value) for name, value in layer.items()}
        check_values(source, known, typed)
        values |= typed
    if values["DATASET.NAME"] == "demo" and values["DATASET.ROOT"] == known["DATASET.ROOT"].default:
        values["DATASET.ROOT"] = DEMO_ROOT      # never drawn, nor read, where SYSU-MM01 belongs
    values["OUTPUT_DIR"] = values["OUTPUT_DIR"].replace("{trial}", str(values["DATASET.TRIAL"]))
    config = CfgNode()
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (config.setdefault(section, CfgNode()) if section else config)[key] = value
    config.freeze()
    return config


def with_defaults(settings):
    """Fill in the keys that a run's settings, a flat dict, do not name: they have the defaults, its method's too."""
    return {**flat(as_dict(load_config(base={"METHOD": {"NAME": settings.get("METHOD.NAME", "")}}))), **settings}


def as_dict(config):
    """Return the tree as plain dicts, for files and checkpoints."""
    return {k: as_dict(v) if isinstance(v, CfgNode) else v for k, v in config.items()}


def _known(layers):
    """List all settings, those of the method that the last layer names among them: {"SECTION.KEY": `Setting`}.

    Raises: UserError: there is no such method.
    """
    known = {setting.name: setting for setting in SETTINGS}
    known["METHOD.NAME"] = known["METHOD.NAME"]._replace(allowed=tuple(METHODS))     # scripts may have entered one more
    name = known["METHOD.NAME"].default
    for layer in layers:
        name = layer.get("METHOD.NAME", name)
    if name not in METHODS:
        raise UserError(f"METHOD.NAME is {name}; expected {' or '.join(METHODS)}, or one that your own script "
                        "enters (docs/extending.md)")
    return known | {f"METHOD.{setting.name}": setting for setting in METHODS[name].declared()}


def _pairs(words):
    """Read the words of a command line: {"SECTION.KEY": text}."""
    parts = []
    for word in words:
        parts += [word] if len(parts) % 2 else word.split("=", 1)       # a value may hold "=" too
    if len(parts) % 2:
        raise UserError(f"configuration overrides {' '.join(words)} are no KEY VALUE pairs; expected an even number of "
                        "words, as in SEED 2 TEST.MODE indoor")
    return dict(zip(parts[::2], parts[1::2]))


class _TextLoader(yaml.BaseLoader):
    """YAML in which every value is the text that was typed, and no key stands twice."""

    def construct_mapping(self, node, deep=False):
        """Build a mapping. Raises: YAMLError: a key stands twice."""
        keys = [key.value for key, _ in node.value]
        twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"the key {twice[0]} stands twice")
        return super().construct_mapping(node, deep)


def _read_yaml(path):
    """Read a .yml file: {"SECTION.KEY": text, or lists of text}. Raises: UserError."""
    if not os.path.isfile(path):
        raise UserError(f"configuration file {quoted(path)} is missing; expected a .yml file such as configs/sysu.yml")
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _TextLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"configuration file {quoted(path)} cannot be read ({' '.join(str(error).split())[:160]}); "
                        "expected YAML such as configs/sysu.yml")
    if not isinstance(content, dict):
        raise UserError(f"configuration file {quoted(path)} holds a {type(content).__name__}; expected KEY: value "
                        "lines such as in configs/sysu.yml")
    return flat(content)


def _typed(setting, value):
    """Turn what was typed into the type of a setting's default, where it can be; of text only a path's ~ changes."""
    kind = type(setting.default)
    if kind is str and isinstance(value, str):
        return os.path.expanduser(value) if setting.name in PATHS else value
    found = _literal(value)
    return float(found) if kind is float and type(found) is int else found


def _literal(value):
    """Read a literal of Python, or lists of them; what is none stays text."""
    if isinstance(value, list):
        return [_literal(entry) for entry in value]
    try:
        return ast.literal_eval(value.title() if value.lower() in ("true", "false") else value)
    except (ValueError, SyntaxError):
        return value


def _nearest(name, known):
    """Return the known key that is spelt most like name, as a whole or in a word; "" where none is like it."""
    spelt = {word: key for key in reversed(known) for word in (*key.split("."), key)}
    near = [word for part in (name.upper(), name.upper().rpartition(".")[2])
            for word in get_close_matches(part, spelt, 1, LIKE)]
    return spelt[near[0]] if near else ""
