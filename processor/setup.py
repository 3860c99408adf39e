"""From the configuration tree to objects that take plain arguments: what the three scripts have in common.

A training script takes its folder, finds the state to resume from, checks that it fits, and begins.
"""
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from configs.defaults import as_dict
from data.augment import Augmentation
from data.images import open_bank, pick_cache
from data.manifest import data_manifest
from data.registry import open_dataset
from model.cclnet import CCLNet
from model.clip import load_clip, weights_digest
from processor.evaluate import Tester, check_matches
from processor.prompt import PromptSettings
from processor.pseudo_labels import ClusterSettings
from processor.run import ADVICE_FRESH, Run, check_resumable, read_rows, set_aside, state_file
from processor.saved import check_stages
from processor.train import TrainSettings
from utils.checkpoint import write_atomically
from utils.errors import quoted
from utils.modality import Modality
from utils.resume import StopRequest, lock_folder
from utils.runtime import open_log, pick_device, print_line, unused_gpu_warning


class Setup:
    """The objects of a script. Nothing is written before every input was found in order.

    Args: config: of `load_config`; script: its name, for the log.
    """

    def __init__(self, config, script):
        self.config, self.script = config, script
        self.device = pick_device(config.DEVICE)
        self.data = open_dataset(config.DATASET.NAME, config.DATASET.ROOT, config.DATASET.TRIAL,
                                 config.DATASET.CHECK_COUNTS)
        modes = self.data.modes if config.TEST.MODE == "both" else (config.TEST.MODE,)
        self.retrievals = [self.data.retrieval(mode, config.TEST.TRIALS, config.TEST.PROTOCOL) for mode in modes]
        for retrieval in self.retrievals:
            check_matches(self.data, retrieval)

    @cached_property
    def clip(self):
        """The `open_clip.CLIP` that the run begins with."""
        return load_clip(self.config.MODEL.CLIP_WEIGHTS)

    def new_model(self):
        """Build a `CCLNet` with CLIP's weights, on the device."""
        return self.place(CCLNet(self.clip.visual, self.config.INPUT.HEIGHT, self.config.INPUT.WIDTH))

    def place(self, model):
        """Return the model on the device, its convolutions channels-last, which is fastest there."""
        return model.to(self.device, memory_format=torch.channels_last)

    def banks(self, split):
        """Open the images of a split, "train" or "test": Modality -> `ImageBank`."""
        data, size = self.data, (self.config.INPUT.HEIGHT, self.config.INPUT.WIDTH)
        return {m: open_bank(images, data.root, data.cache_dir(self.config.DATASET.CACHE_DIR), split, *size,
                             self.device, self.cache, print_line) for m, images in getattr(data, split).items()}

    @cached_property
    def cache(self):
        """Where all images of the run are held: DATASET.CACHE, or what auto comes to."""
        images = sum(len(images) for _, images in self.data.sets())
        return pick_cache(self.config.DATASET.CACHE, 3 * images * self.config.INPUT.HEIGHT * self.config.INPUT.WIDTH,
                          self.device)

    @cached_property
    def manifest(self):
        """The `data_manifest` of the run's images."""
        return data_manifest(self.data, self.config.DATASET.CACHE_DIR)

    def facts(self):
        """Return what every checkpoint remembers of the run."""
        return {"config": as_dict(self.config), "dataset": self.data.name, "trial": self.config.DATASET.TRIAL,
                "manifest": self.manifest}

    def tester(self):
        """Build the `Tester` of TEST.MODE, or of the first mode if that is both."""
        test = self.config.TEST
        return Tester(self.data, self.banks("test"), self.retrievals[0], test.EVERY, test.BATCH_SIZE,
                      self.config.PRECISION)

    def start(self, folder):
        """Open the log in a folder, write config.yml, print the data set's counts: the logger."""
        log = open_log(folder, self.script)
        write_atomically(Path(folder) / "config.yml", lambda file: file.write(self.config.dump().encode()))
        log.info(f"{self.script} on {self.device}, DATASET.CACHE {self.cache}, results in {folder}")
        unused_gpu = self.config.DEVICE == "auto" and unused_gpu_warning()
        for line in (*([f"warning: {unused_gpu}"] if unused_gpu else ()), *self.data.counts(), *self.data.notes):
            log.info(line)
        return log

    @contextmanager
    def training(self, script, fresh, **more_facts):
        """Take the folder, find the state to resume from, check that it fits, and begin: gives the `Run`.

        Within the context SIGTERM and Ctrl-C end the run at its next step.

        Args:
            script: "prepare" or "clip"; fresh: keep old files aside instead of resuming; more_facts: further things
            that must not have changed.
        Raises: UserError: another run has the folder, the state is of another configuration or other data, or a file
            of the folder is damaged.
        """
        config, facts = self.config, {**self.facts(), "clip_weights": weights_digest(self.clip), **more_facts}
        with StopRequest() as stop, lock_folder(config.OUTPUT_DIR):
            aside = set_aside(config.OUTPUT_DIR, script) if fresh else None
            content, warning = state_file(config.OUTPUT_DIR, script).load()
            read_rows(config.OUTPUT_DIR)
            changes = []
            if content is not None:
                changes = check_resumable(content, facts, config.OUTPUT_DIR)
                check_stages(content["stages"], self.new_model(), {m: len(s) for m, s in self.data.train.items()},
                             f"the state file in {quoted(config.OUTPUT_DIR)}", ADVICE_FRESH)
            log = self.start(config.OUTPUT_DIR)
            for line in (aside and f"old files are kept in {aside}", warning and f"warning: {warning}", *changes):
                if line:
                    log.info(line)
            yield Run(script, config.OUTPUT_DIR, log, facts, stop, config.CHECKPOINT.MINUTES, content)


def train_settings(config, epochs, restart=False, allow_collapse=True):
    """Collect the `TrainSettings` of a configuration.

    Args: epochs: of the stage; restart: whether optimiser and learning rates begin anew at the swap epoch;
        allow_collapse: whether training goes past clusterings of one cluster.
    """
    augmentation = {m: Augmentation(grey=config.INPUT.GREY if m is Modality.RGB else 0.0, flip=config.INPUT.FLIP,
                                    pad=config.INPUT.PAD, erase=config.INPUT.ERASE) for m in Modality}
    return TrainSettings(
        seed=config.SEED, epochs=epochs, cluster=ClusterSettings(**_lower(config.CLUSTER)), **_lower(config.MEMORY),
        clusters_per_batch=config.SAMPLER.CLUSTERS, instances=config.SAMPLER.INSTANCES, augmentation=augmentation,
        lr=config.OPTIM.LR, bias_lr_factor=config.OPTIM.BIAS_LR_FACTOR, weight_decay=config.OPTIM.WEIGHT_DECAY,
        warmup_epochs=config.OPTIM.WARMUP_EPOCHS, warmup_factor=config.OPTIM.WARMUP_FACTOR,
        lr_steps=tuple(config.OPTIM.STEPS), lr_gamma=config.OPTIM.GAMMA,
        restart_epoch=config.MEMORY.SWAP_EPOCH if restart else None, allow_collapse=allow_collapse,
        precision=config.PRECISION, embed_batch_size=config.TEST.BATCH_SIZE)


def prompt_settings(config):
    """Collect the `PromptSettings` of a configuration."""
    return PromptSettings(seed=config.SEED, **_lower(config.PROMPT), precision=config.PRECISION,
                          embed_batch_size=config.TEST.BATCH_SIZE)


def _lower(section):
    """Return a section's keys in lower case, as arguments."""
    return {key.lower(): value for key, value in section.items()}
