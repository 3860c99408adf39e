"""From the configuration tree to parts that take plain arguments: what the three scripts have in common."""
import argparse
from functools import cached_property
from pathlib import Path

import torch

from configs.defaults import as_dict
from data.augment import Augmentation
from data.images import open_bank
from data.manifest import data_manifest
from data.registry import open_dataset
from processor.contrast import ContrastSettings
from processor.prompt import PromptSettings
from processor.pseudo_labels import ClusterSettings
from processor.stages import Tester
from utils.checkpoint import write_atomically
from utils.modality import Modality
from utils.runtime import open_log, pick_device


def parse_arguments(description, switches=None, **options):
    """The command line that all scripts share: [--config_file FILE] [switches] [options] [KEY VALUE ...].

    Args: switches: name -> help of flags without a value; options: name -> help of flags with one.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config_file", help="a .yml file with settings that differ from configs/defaults.py")
    for name, help_text in options.items():
        parser.add_argument(f"--{name}", help=help_text)
    for name, help_text in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=help_text)
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="single settings, as in SEED 2 TEST.MODE indoor")
    return parser.parse_args()


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
        self.retrievals = [self.data.retrieval(mode, config.TEST.TRIALS, config.TEST.PROTOCOL, config.TEST.SHOTS)
                           for mode in modes]
        self.name = name
        self.log = None

    def start(self):
        """Open the log, write config.yml, print the data set's counts: the run begins."""
        config = self.config
        self.log = open_log(config.OUTPUT_DIR, self.name)
        write_atomically(Path(config.OUTPUT_DIR) / "config.yml", lambda file: file.write(config.dump().encode()))
        self.log.info(f"{self.name} on {self.device}, results in {config.OUTPUT_DIR}")
        for line in (*self.data.counts(), *self.data.notes):
            self.log.info(line)

    @cached_property
    def manifest(self):
        """The `data_manifest` of the run's images."""
        return data_manifest(self.data)

    def place(self, model):
        """The model on the device, its convolutions channels-last like the batches of `ImageBank`."""
        return model.to(self.device, memory_format=torch.channels_last)

    def banks(self, split):
        """Modality -> `ImageBank` of the "train" or "test" images."""
        data, config = self.data, self.config
        return {m: open_bank(images, data.root, data.cache_dir(config.DATASET.CACHE_DIR), split, config.INPUT.HEIGHT,
                             config.INPUT.WIDTH, self.device) for m, images in getattr(data, split).items()}

    def tester(self):
        """The `Tester` of TEST.MODE, or of the first mode if that is both."""
        test = self.config.TEST
        return Tester(self.data, self.banks("test"), self.retrievals[0], test.BATCH_SIZE, test.EVERY)

    def facts(self):
        """What every checkpoint remembers of the run."""
        return {"config": as_dict(self.config), "dataset": self.data.name, "trial": self.config.DATASET.TRIAL,
                "manifest": self.manifest}


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
    return PromptSettings(**{k.lower(): v for k, v in config.PROMPT.items()},
                          embed_batch_size=config.TEST.BATCH_SIZE, seed=config.SEED)
