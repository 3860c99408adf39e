"""From the configuration tree to parts that take plain arguments: what the three scripts have in common."""
from functools import cached_property
from pathlib import Path

import torch

from configs.defaults import REMOVED, as_dict, flat, load_config
from data.augment import Augmentation
from data.images import open_bank, pick_cache
from data.manifest import data_manifest
from data.registry import open_dataset
from processor.contrast import ContrastSettings
from processor.diagnosis import known_persons
from processor.evaluate import check_matches
from processor.prompt import PromptSettings
from processor.pseudo_labels import ClusterSettings
from processor.run import FORMAT, Run, set_aside, state_file
from processor.stages import Tester
from utils.checkpoint import write_atomically
from utils.errors import Parser, UserError
from utils.modality import Modality
from utils.resume import lock_folder, versions
from utils.runtime import open_log, pick_device

# Settings that may differ when a run goes on: they decide neither weights nor labels. More epochs may be asked for.
# DEVICE and TEST.BATCH_SIZE change the order of additions, so the last bits.
MAY_CHANGE = ("DEVICE", "OUTPUT_DIR", "PSEUDO_LABEL_DIR", "TEST.", "CHECKPOINT.", "DATASET.ROOT", "DATASET.CACHE_DIR",
              "DATASET.CACHE", "DATASET.CHECK_COUNTS")
MAY_GROW = ("PREPARE.EPOCHS", "FINETUNE.EPOCHS")


def parse_arguments(description, switches=None, **options):
    """The command line that all scripts share: [--config_file FILE] [switches] [options] [KEY VALUE ...].

    Args: switches: name -> help of flags without a value; options: name -> help of flags with one.
    """
    parser = Parser(description)
    parser.add_argument("--config_file", help="a .yml file with settings that differ from configs/defaults.py")
    for name, help_text in options.items():
        parser.add_argument(f"--{name}", help=help_text)
    for name, help_text in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=help_text)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE",
                        help="single settings, as in SEED 2 TEST.MODE indoor")
    return parser.parse_intermixed_args()


class Parts:
    """What a script needs: device, data, tester, log. Nothing is written before every input was found in order.

    Args: config: of `load_config`; name: of the script, for the log.
    """

    def __init__(self, config, name):
        self.config = config
        self.device = pick_device(config.DEVICE)
        self.data = open_dataset(config.DATASET.NAME, config.DATASET.ROOT, config.DATASET.TRIAL,
                                 config.DATASET.CHECK_COUNTS)
        modes = self.data.modes if config.TEST.MODE == "both" else (config.TEST.MODE,)
        self.retrievals = [self.data.retrieval(mode, config.TEST.TRIALS, config.TEST.PROTOCOL)
                           for mode in modes]
        for retrieval in self.retrievals:
            check_matches(self.data, retrieval)
        self.name = name
        self.log = None

    def start(self):
        """Open the log, write config.yml, print the data set's counts: the run begins."""
        config = self.config
        self.log = open_log(config.OUTPUT_DIR, self.name)
        write_atomically(Path(config.OUTPUT_DIR) / "config.yml", lambda file: file.write(config.dump().encode()))
        self.log.info(f"{self.name} on {self.device}, DATASET.CACHE {self.cache}, results in {config.OUTPUT_DIR}")
        for line in (*self.data.counts(), *self.data.notes):
            self.log.info(line)

    def start_training(self, name, stop, fresh, own_files, **more_facts):
        """Take the folder, find the state to go on from, check that it fits, and begin: the `Run`.

        Args:
            name: of the state file; stop: `StopRequest`; fresh: keep old files aside instead of going on from them;
            own_files: patterns of what the script writes; more_facts: further things that must not have changed.
        Raises: UserError: another run has the folder, or the state is of another configuration or other data.
        """
        config, tester = self.config, self.tester()
        facts = {**self.facts(), **more_facts}
        self._lock = lock_folder(config.OUTPUT_DIR)
        aside = set_aside(config.OUTPUT_DIR, own_files) if fresh else None
        content, warning = state_file(config.OUTPUT_DIR, name).load()
        changes = check_resumable(content, facts, config.OUTPUT_DIR) if content is not None else []
        self.start()
        for line in (aside and f"old files are kept in {aside}", warning and f"warning: {warning}", *changes):
            if line:
                self.log.info(line)
        return Run(name, config.OUTPUT_DIR, self.log, tester, facts, stop, config.CHECKPOINT.MINUTES, content,
                   known_persons(self.data.train))

    @cached_property
    def manifest(self):
        """The `data_manifest` of the run's images."""
        return data_manifest(self.data)

    def place(self, model):
        """The model on the device, its convolutions channels-last like the batches of `ImageBank`."""
        return model.to(self.device, memory_format=torch.channels_last)

    @cached_property
    def cache(self):
        """Where all images of the run are held: DATASET.CACHE, or what auto comes to."""
        images = sum(len(images) for _, images in self.data.sets())
        return pick_cache(self.config.DATASET.CACHE, 3 * images * self.config.INPUT.HEIGHT * self.config.INPUT.WIDTH,
                          self.device)

    def banks(self, split):
        """Modality -> `ImageBank` of the "train" or "test" images."""
        data, config = self.data, self.config
        return {m: open_bank(images, data.root, data.cache_dir(config.DATASET.CACHE_DIR), split, config.INPUT.HEIGHT,
                             config.INPUT.WIDTH, self.device, self.cache) for m, images in getattr(data, split).items()}

    def tester(self):
        """The `Tester` of TEST.MODE, or of the first mode if that is both."""
        test = self.config.TEST
        return Tester(self.data, self.banks("test"), self.retrievals[0], test.BATCH_SIZE, test.EVERY,
                      self.config.PRECISION)

    def facts(self):
        """What every checkpoint remembers of the run."""
        return {"config": as_dict(self.config), "dataset": self.data.name, "trial": self.config.DATASET.TRIAL,
                "manifest": self.manifest}


def check_resumable(content, facts, folder):
    """Refuse to go on from a state (content of a state file) of other settings, data, weights or labels.

    Returns: lines on what changed and may change, for the log.
    Raises: UserError: names the key that changed.
    """
    advice = "Set it back, choose another OUTPUT_DIR, or add --fresh to start over and keep the old files aside"
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"the state file in {folder} is not of this version; expected format {FORMAT}. Choose another "
                        "OUTPUT_DIR, or add --fresh to start over and keep the old files aside")
    # keys that are newer than the state, or removed since, had their default's effect
    old = {**flat(as_dict(load_config())), **REMOVED, **flat(content["config"])}
    new, changes = {**REMOVED, **flat(facts["config"])}, []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        if key in MAY_GROW and now < before:
            raise UserError(f"the run in {folder} was started with {key} {before}, now it is {now}; only more epochs "
                            f"may be asked for. {advice}")
        if key not in MAY_GROW and not key.startswith(MAY_CHANGE):
            raise UserError(f"the run in {folder} was started with {key} {before!r}, now it is {now!r}. {advice}")
        changes.append(f"going on with {key} {now!r} instead of {before!r}")
    for key in facts.keys() - {"config"}:
        if content.get(key) != facts[key]:
            raise UserError(f"the run in {folder} was started with other {key.replace('_', ' ')} than it has now. "
                            f"{advice}")
    here = versions()
    return changes + [f"warning: going on with {name} {here.get(name)} instead of {version}; the last bits may differ"
                      for name, version in content.get("versions", {}).items() if here.get(name) != version]


def contrast_settings(config, epochs):
    """The `ContrastSettings` of a configuration."""
    augmentation = {m: Augmentation(grey=config.INPUT.GREY if m is Modality.RGB else 0.0, flip=config.INPUT.FLIP,
                                    pad=config.INPUT.PAD, erase=config.INPUT.ERASE) for m in Modality}
    return ContrastSettings(
        epochs=epochs, cluster=ClusterSettings(**{k.lower(): v for k, v in config.CLUSTER.items()}),
        temperature=config.MEMORY.TEMPERATURE, momentum=config.MEMORY.MOMENTUM, swap_epoch=config.MEMORY.SWAP_EPOCH,
        swap_scale=config.MEMORY.SWAP_SCALE, swap_order=config.MEMORY.SWAP_ORDER,
        clusters_per_batch=config.SAMPLER.CLUSTERS, instances=config.SAMPLER.INSTANCES,
        lr=config.OPTIM.LR, bias_lr_factor=config.OPTIM.BIAS_LR_FACTOR, weight_decay=config.OPTIM.WEIGHT_DECAY,
        warmup_epochs=config.OPTIM.WARMUP_EPOCHS, warmup_factor=config.OPTIM.WARMUP_FACTOR,
        lr_steps=tuple(config.OPTIM.STEPS), lr_gamma=config.OPTIM.GAMMA, augmentation=augmentation,
        precision=config.PRECISION, embed_batch_size=config.TEST.BATCH_SIZE, seed=config.SEED)


def prompt_settings(config):
    """The `PromptSettings` of a configuration."""
    return PromptSettings(**{k.lower(): v for k, v in config.PROMPT.items()}, precision=config.PRECISION,
                          embed_batch_size=config.TEST.BATCH_SIZE, seed=config.SEED)
