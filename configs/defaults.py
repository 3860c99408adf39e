"""Every setting, with its default: the released recipe for SYSU-MM01. The .yml files hold only what differs."""
import ast
import difflib
import os
import re
import reprlib
from functools import reduce

import yaml
from yacs.config import CfgNode

from loss.methods import METHODS
from utils.errors import UserError, is_unicode, quoted
from utils.settings import flat

_C = CfgNode()
_C.OUTPUT_DIR = "runs/sysu"          # everything a run writes; {trial} in it becomes DATASET.TRIAL
_C.SEED = 1                          # of every random number (see utils/seeding.py)
_C.DEVICE = "auto"                   # auto | cuda | cpu
_C.PRECISION = "released"            # released | fp32 | tf32 | bf16, of the image side (see utils/runtime.py)
_C.COMPILE = False                   # torch.compile of the image tower in training: minutes at first (docs/gpu.md)
_C.PSEUDO_LABEL_DIR = ""             # "" = OUTPUT_DIR/pseudo_labels, else ROOT/pseudo_labels (RegDB: trialN in it)

_C.DATASET = CfgNode()
_C.DATASET.NAME = "sysu"             # sysu | regdb | llcm | csv (own images) | demo
_C.DATASET.ROOT = "dataset/SYSU-MM01"    # folder of the images, in the layout of docs/data.md; demo: dataset/demo
_C.DATASET.TRIAL = 1                 # RegDB: which of its ten splits
_C.DATASET.CHECK_COUNTS = True       # False: a subset, or one's own people in the same layout
_C.DATASET.CACHE_DIR = ""            # folder of the decoded images (RegDB: of trialN with them); "" = ROOT
_C.DATASET.CACHE = "auto"            # auto | mmap | device: where they are held (see data/images.py)

_C.INPUT = CfgNode()
_C.INPUT.HEIGHT = 288                # pixels to which images are resized
_C.INPUT.WIDTH = 144                 # pixels to which images are resized
_C.INPUT.NORMALISATION = "imagenet"  # imagenet | clip | half: mean and standard deviation (see data/augment.py)
_C.INPUT.GREY = 0.5                  # probability of grey, visible images
_C.INPUT.FLIP = 0.5                  # probability of a left-right flip
_C.INPUT.PAD = 10                    # pixels of zero padding before the random crop
_C.INPUT.ERASE = 0.5                 # probability of random erasing
_C.INPUT.CHANNEL = 0.0               # probability of one channel in place of all three, visible images (pgm, rpnr: of
                                     # their second view, where the released codes have 1)

_C.MODEL = CfgNode()
_C.MODEL.NAME = "RN50"               # which of OpenAI's CLIPs; a file's kind is read from it
_C.MODEL.CLIP_WEIGHTS = "openai"     # "openai" (MODEL.NAME, downloaded) or a file
_C.MODEL.STRIDE = 16                 # pixels between patches of a vision transformer; a ResNet's map has always 16
_C.MODEL.TOWER = ""                  # clip_resnet | clip_vit, or one of your own (docs/extending.md); "" = the one
                                     # whose weights they are

_C.CLUSTER = CfgNode()
_C.CLUSTER.K1 = 30                   # neighbours that count as near
_C.CLUSTER.K2 = 6                    # neighbours whose encodings are averaged
_C.CLUSTER.EPS = 0.6                 # largest Jaccard distance of DBSCAN neighbours
_C.CLUSTER.MIN_SAMPLES = 4           # neighbours, itself among them, that make an image the core of a cluster

_C.MEMORY = CfgNode()
_C.MEMORY.METHOD = "cclnet"          # cclnet | pgm | rpnr | none (see loss/methods.py)
_C.MEMORY.MATCH_BY = ""              # prototype | centroid | projection | text: where clusters are linked (see
                                     # loss/linking.py); "" = the method's: cclnet prototype, pgm, rpnr centroid
_C.MEMORY.TEMPERATURE = 0.05         # by which inner products are divided in the contrastive losses
_C.MEMORY.MOMENTUM = 0.1             # share of the old prototype in an update
_C.MEMORY.RENEWAL = ""               # plain | hard: samples that move a prototype; "" = the method's: pgm hard, cclnet
                                     # plain; rpnr has its own, whatever stands here
_C.MEMORY.SWAP_EPOCH = 61            # first epoch in which the modalities meet: swapping, or the cross-modal loss
_C.MEMORY.SWAP_SCALE = 0.1           # cclnet: share that a prototype keeps when swapped
_C.MEMORY.SWAP_ORDER = "released"    # cclnet: released | simultaneous (see loss/cclnet.py)
_C.MEMORY.CROSS_WEIGHT = 0.25        # pgm, rpnr: of the cross-modal loss; with 0 its images still renew the memory
_C.MEMORY.GRADIENTS = "exact"        # pgm, rpnr: exact | released (see loss/pgm.py)
_C.MEMORY.HYBRID_WEIGHT = 0.5        # rpnr: of the loss with the hybrid memory; with 0 it is still renewed
_C.MEMORY.RELATION = "released"      # rpnr: released | normalised: length of the features of the relation loss
_C.MEMORY.RELATION_WEIGHT = 10.0     # rpnr: of the relation loss
_C.MEMORY.TOP_IMAGES = 20            # rpnr: densest images of a cluster that make its prototype for calibration

_C.BATCH_NORM = CfgNode()
_C.BATCH_NORM.SPLITS = 1            # parts of a batch with statistics of their own, as DataParallel on so many GPUs

_C.SAMPLER = CfgNode()
_C.SAMPLER.CLUSTERS = 4              # P per modality and batch
_C.SAMPLER.INSTANCES = 16            # K images of each

_C.OPTIM = CfgNode()                 # image side
_C.OPTIM.LR = 3.5e-4                 # of Adam
_C.OPTIM.BIAS_LR_FACTOR = 2.0        # on the learning rate of biases
_C.OPTIM.WEIGHT_DECAY = 5e-4         # of Adam: added to the gradients
_C.OPTIM.WARMUP_EPOCHS = 10          # in which the learning rate rises to LR, linearly
_C.OPTIM.WARMUP_FACTOR = 0.01        # share of LR at the start of the warm-up
_C.OPTIM.STEPS = [30, 50]            # epochs from which the learning rate is multiplied by GAMMA
_C.OPTIM.GAMMA = 0.1                 # factor on the learning rate at each of STEPS
_C.OPTIM.FACTORS = []                # [start of a name, factor on its rate] pairs, as [["tower.stems.", 0]]; 0 freezes

_C.PREPARE = CfgNode()
_C.PREPARE.EPOCHS = 120              # of train_prepare.py
_C.PREPARE.ALLOW_COLLAPSE = False    # True: train on though a modality stays in one cluster
_C.PREPARE.RESTART_AT_SWAP = False   # new Adam and new warm-up at MEMORY.SWAP_EPOCH, as the second runs of PGM and RPNR

_C.PROMPT = CfgNode()
_C.PROMPT.EPOCHS = 60                # of train_clip.py's first stage
_C.PROMPT.BATCH_SIZE = 128           # pairs of a visible and an infrared image
_C.PROMPT.LR = 3.5e-4                # of Adam, before the cosine
_C.PROMPT.LR_MIN = 1e-6              # at the end of the cosine
_C.PROMPT.WARMUP_LR = 1e-5           # at the start of the warm-up
_C.PROMPT.WARMUP_EPOCHS = 5          # in which the learning rate rises from WARMUP_LR
_C.PROMPT.WEIGHT_DECAY = 1e-4        # of Adam: added to the gradients

_C.FINETUNE = CfgNode()
_C.FINETUNE.EPOCHS = 120             # of train_clip.py's second stage
_C.FINETUNE.LABEL_SMOOTHING = 0.1    # of the image-to-text loss
_C.FINETUNE.RESTART_AT_SWAP = False  # new Adam and new warm-up at MEMORY.SWAP_EPOCH, as RegDB's released code

_C.TEST = CfgNode()
_C.TEST.MODE = ""                    # all | indoor, RegDB and LLCM v2t | t2v; "" = the first; both: see test.py
_C.TEST.PROTOCOL = "python"          # galleries: python | original-1 | original-10 (SYSU-MM01's file, 1 or 10 shots)
_C.TEST.TRIALS = 10                  # galleries; RegDB has one, all images
_C.TEST.EVERY = 5                    # epochs between evaluations during training; the last is always evaluated
_C.TEST.BATCH_SIZE = 64              # images embedded at once; on a GPU the least, see processor/features.py

_C.CHECKPOINT = CfgNode()
_C.CHECKPOINT.MINUTES = 10.0         # between saves of the state within an epoch; every epoch's end is saved too

_C.LOG = CfgNode()
_C.LOG.WANDB = False                 # True: log to Weights & Biases too, beside the TensorBoard files

CHOICES = {"DEVICE": ("auto", "cuda", "cpu"), "PRECISION": ("released", "fp32", "tf32", "bf16"),
           "DATASET.CACHE": ("auto", "mmap", "device"), "MEMORY.SWAP_ORDER": ("released", "simultaneous"),
           "MEMORY.METHOD": METHODS,
           "MEMORY.MATCH_BY": ("prototype", "centroid", "projection", "text"),
           "MEMORY.RENEWAL": ("plain", "hard"), "MEMORY.GRADIENTS": ("exact", "released"),
           "MEMORY.RELATION": ("released", "normalised"),
           "TEST.PROTOCOL": ("python", "original-1", "original-10"),
           "INPUT.NORMALISATION": ("imagenet", "clip", "half"),
           "MODEL.NAME": ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14",
                          "ViT-L-14-336")}
# The upper bounds are far beyond any use; they keep a slip of the hand from filling memory, disk or a month.
NUMBERS = (    # what is expected, the test, the keys
    ("a whole number from 1 to 1,000,000", lambda v: 1 <= v <= 1_000_000,
     ("CLUSTER.K1", "CLUSTER.K2", "CLUSTER.MIN_SAMPLES", "PREPARE.EPOCHS", "PROMPT.EPOCHS", "FINETUNE.EPOCHS",
      "TEST.EVERY", "DATASET.TRIAL", "MEMORY.SWAP_EPOCH", "MEMORY.TOP_IMAGES")),
    ("a whole number from 1 to 10,000", lambda v: 1 <= v <= 10_000,
     ("SAMPLER.CLUSTERS", "SAMPLER.INSTANCES", "PROMPT.BATCH_SIZE", "TEST.BATCH_SIZE", "TEST.TRIALS",
      "BATCH_NORM.SPLITS")),
    ("a whole number from 1 to 2,048", lambda v: 1 <= v <= 2048, ("INPUT.HEIGHT", "INPUT.WIDTH", "MODEL.STRIDE")),
    ("a whole number from 0 to 1,000", lambda v: 0 <= v <= 1000, ("INPUT.PAD",)),
    ("a whole number from 0 to 2^63 - 1", lambda v: 0 <= v < 2 ** 63, ("SEED",)),
    ("a number from 0 to 1,000,000", lambda v: 0 <= v <= 1_000_000,
     ("OPTIM.WARMUP_EPOCHS", "OPTIM.WARMUP_FACTOR", "OPTIM.BIAS_LR_FACTOR", "OPTIM.GAMMA", "OPTIM.WEIGHT_DECAY",
      "PROMPT.WEIGHT_DECAY", "PROMPT.WARMUP_EPOCHS", "PROMPT.LR_MIN", "PROMPT.WARMUP_LR", "CHECKPOINT.MINUTES",
      "MEMORY.CROSS_WEIGHT", "MEMORY.HYBRID_WEIGHT", "MEMORY.RELATION_WEIGHT")),
    ("a number above 0, up to 1,000,000", lambda v: 0 < v <= 1_000_000,
     ("MEMORY.TEMPERATURE", "OPTIM.LR", "PROMPT.LR")),
    ("a number from 0 to 1", lambda v: 0 <= v <= 1,
     ("INPUT.GREY", "INPUT.FLIP", "INPUT.ERASE", "INPUT.CHANNEL", "CLUSTER.EPS", "MEMORY.MOMENTUM", "MEMORY.SWAP_SCALE",
      "FINETUNE.LABEL_SMOOTHING")),
)
LONGEST_TEXT, LONGEST_LIST, LONGEST_FILE = 4000, 1000, 1_000_000      # characters, entries, bytes of a .yml file
DEEPEST = 5                  # sections in one another
ASSIGNMENT = re.compile(r"[A-Z_0-9]+(\.[A-Z_0-9]+)*=")       # KEY=VALUE, another spelling of KEY VALUE
# Keys that older checkpoints store. They are ignored there; on the command line and in a .yml file they are unknown.
REMOVED = ("CLUSTER.INDEX", "PROMPT.TEMPERATURE", "TEST.SHOTS")


def load_config(config_file=None, overrides=(), base=None):
    """Defaults, then `base` (a dict of sections), then a .yml file, then KEY VALUE pairs: a frozen CfgNode.

    Raises: UserError: unreadable file, unknown key (names the nearest), wrong type or value.
    """
    config = _C.clone()
    if base is not None and not isinstance(base, dict):
        raise UserError(f"the checkpoint holds {_short(base)} as its configuration; expected sections of keys. "
                        "Train or download it again")
    if base:
        _merge(config, _without_removed(base), "the checkpoint's configuration")
    if config_file:
        _merge(config, _read_yaml(config_file), config_file)
    overrides = [part for word in overrides for part in (word.split("=", 1) if ASSIGNMENT.match(word) else [word])]
    if len(overrides) % 2:
        raise UserError(f"configuration overrides {_short(' '.join(overrides), text=True)} are no KEY VALUE pairs; "
                        "expected an even number of words, as in SEED 2 TEST.MODE indoor")
    for key, text in zip(overrides[::2], overrides[1::2]):
        _merge(config, {key: _parse(text)}, "the command line")
    _check_values(config)
    if config.DATASET.NAME == "demo" and config.DATASET.ROOT == _C.DATASET.ROOT:
        config.DATASET.ROOT = "dataset/demo"        # never drawn, nor read, where SYSU-MM01 belongs
    config.OUTPUT_DIR = config.OUTPUT_DIR.replace("{trial}", str(config.DATASET.TRIAL))
    config.freeze()
    return config


def as_dict(config):
    """The tree as plain dicts, for files and checkpoints."""
    return {k: as_dict(v) if isinstance(v, CfgNode) else v for k, v in config.items()}


def _without_removed(tree):
    """Bring the configuration of an older checkpoint to today's keys and values."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    sections = {key: value for key, value in tree.items() if isinstance(value, dict)}
    test, data = sections.get("TEST", {}), sections.get("DATASET", {})
    if isinstance(test.get("PROTOCOL"), str) and test["PROTOCOL"] == "original":
        test["PROTOCOL"] = f"original-{test.get('SHOTS', 1)}"
    if isinstance(data.get("CACHE"), str) and data["CACHE"] == "memory":
        data["CACHE"] = "auto"
    for name in REMOVED:
        section, key = name.split(".")
        sections.get(section, {}).pop(key, None)
    return tree


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no key stands twice."""

    def construct_mapping(self, node, deep=False):
        """Build a mapping. Raises: YAMLError: a key stands twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"the key {_short(twice[0], text=True)} stands twice")
        return super().construct_mapping(node, deep)


def _read_yaml(path):
    if not os.path.isfile(path):
        raise UserError(f"configuration file {quoted(path)} is missing; expected a .yml file such as configs/sysu.yml")
    try:
        if os.path.getsize(path) > LONGEST_FILE:
            raise ValueError(f"{os.path.getsize(path):,} bytes, more than {LONGEST_FILE:,}")
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _StrictLoader)
    except (OSError, UnicodeDecodeError, RecursionError, ValueError, TypeError, OverflowError, AttributeError,
            yaml.YAMLError) as error:
        raise UserError(f"configuration file {quoted(path)} cannot be read ({' '.join(str(error).split())[:160]}); "
                        "expected YAML such as configs/sysu.yml")
    if content is not None and not isinstance(content, dict):
        raise UserError(f"configuration file {quoted(path)} holds a {type(content).__name__}; expected KEY: value "
                        "lines such as in configs/sysu.yml")
    return content or {}


def _short(value, text=False):
    """Write a value for a message, however large it is. Args: text: without quotes."""
    try:
        text = str(value) if text else reprlib.repr(value)
    except ValueError:          # Python does not write whole numbers of thousands of digits
        text = f"a number of {value.bit_length():,} bits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parse(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):       # the last three: endless brackets
        return text


def _merge(config, tree, source):
    """Let yacs merge sections of keys into a configuration; its errors become sentences that name the source.

    A whole number may stand for a float, and a number for text: a folder may be named 2024.
    """
    known = flat(as_dict(config))
    for name, value in _flat_settings(tree, source).items():
        if isinstance(known.get(name), float) and type(value) is int and abs(value) < 10 ** 300:
            value = float(value)
        if isinstance(known.get(name), str) and type(value) in (int, float):
            value = _short(value, text=True)
        if name not in known:
            keys = [key for key in known if key.startswith(f"{name}.")]
            if keys:
                raise UserError(f"{source} sets the section {name} to {_short(value)}; expected one of its keys, as in "
                                f"{keys[0]}")
            raise UserError(f"{source} has the unknown key {_short(name, text=True)}; did you mean "
                            f"{_nearest(name, known)}? configs/defaults.py lists all keys")
        try:
            if not _is_plain(value):        # yacs lets None and {} stand for anything
                raise ValueError
            config.merge_from_list([name, repr(value) if isinstance(value, str) else value])
        except ValueError:
            raise UserError(f"{source} sets {name} to {_short(value)} ({type(value).__name__}); expected "
                            f"{type(known[name]).__name__}, such as {known[name]!r}")


def _flat_settings(tree, source, prefix="", depth=1):
    """`flat` of a tree that may be anything. Raises: UserError: it lies in itself, or a key is no text."""
    keys = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{source} has the key {_short(key)} ({type(key).__name__}); expected text, such as SEED")
        if isinstance(value, dict) and value:
            if depth == DEEPEST:
                raise UserError(f"{source} has sections in one another without end at "
                                f"{_short(prefix + key, text=True)}; expected SECTION.KEY at most")
            keys.update(_flat_settings(value, source, f"{prefix}{key}.", depth + 1))
        else:
            keys[prefix + key] = value
        if len(keys) > LONGEST_LIST:
            raise UserError(f"{source} has more than {LONGEST_LIST:,} keys, such as {_short(prefix + key, text=True)}; "
                            "configs/defaults.py lists all keys")
    return keys


def _is_plain(value, depth=2):
    """Tell whether a value is a number, text, or a list of them, or of lists of them, of moderate length."""
    if isinstance(value, (list, tuple)) and depth:
        return len(value) <= LONGEST_LIST and all(_is_plain(entry, depth - 1) for entry in value)
    return type(value) in (bool, int, float, str)


def _nearest(name, known):
    """Return the known key that is spelt most like name."""
    upper = {key.upper(): key for key in known}
    return upper[difflib.get_close_matches(name.upper()[:100], upper, n=1, cutoff=0)[0]]


def _check_values(config):
    values = flat(as_dict(config))
    for name, value in values.items():
        if isinstance(value, str) and (len(value) > LONGEST_TEXT or "\0" in value or not is_unicode(value)):
            raise UserError(f"{name} is {_short(value)} ({len(value):,} characters); expected text in UTF-8 of at most "
                            f"{LONGEST_TEXT:,} characters, without a NUL")
    for name in CHOICES:
        if values[name] not in choices(name):
            raise UserError(f"{name} is {_short(values[name])}; choose "
                            f"{' or '.join(choice or repr(choice) for choice in choices(name))}")
    for expected, is_right, names in NUMBERS:
        for name in names:
            if not is_right(values[name]):          # NaN lies between no bounds
                raise UserError(f"{name} is {_short(values[name], text=True)}; expected {expected}")
    if not config.OUTPUT_DIR.strip():
        raise UserError("OUTPUT_DIR is empty; expected a folder such as runs/sysu")
    if not all(type(step) is int and 0 <= step <= 1_000_000 for step in config.OPTIM.STEPS):
        raise UserError(f"OPTIM.STEPS is {_short(config.OPTIM.STEPS)}; expected a list of epochs such as [30, 50]")
    if not all(map(_is_factor, config.OPTIM.FACTORS)):
        raise UserError(f"OPTIM.FACTORS is {_short(config.OPTIM.FACTORS)}; expected pairs of the start of a weight's "
                        "name and a factor from 0 to 1,000,000, such as [[\"tower.stems.\", 0]]")


def choices(name):
    """List what a key of CHOICES may be: its default first."""
    return list(dict.fromkeys([reduce(getattr, name.split("."), _C), *CHOICES[name]]))


def _is_factor(pair):
    """Tell whether an entry of OPTIM.FACTORS is a name and a number."""
    return (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
            and type(pair[1]) in (int, float) and 0 <= pair[1] <= 1_000_000)
