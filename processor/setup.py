"""From the configuration tree to objects that take plain arguments: what the three scripts have in common."""
import math
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch

from configs.defaults import as_dict
from configs.groups import label_differences
from configs.identity import identity, images_digest
from data.augment import Augmentation
from data.images import open_banks, pick_cache
from data.manifest import data_manifest
from data.pseudo_labels import find_pseudo_labels, load_pseudo_labels, origin, renumbered
from data.registry import open_dataset
from loss.methods import METHODS
from model.batch_norm import spread_batch_norm
from model.cclnet import CCLNet
from model.clip import find_activation, load_clip
from model.state_dict import weights_digest
from model.towers.registry import load_tower
from processor.evaluate import Tester, check_matches
from processor.optim import freeze
from processor.run.events import WandbLog, check_wandb
from processor.run.folder import Run, find_state, lock_folder
from processor.run.provenance import provenance
from utils.checkpoint import write_atomically
from utils.distributed import join_processes
from utils.errors import UserError, quoted, stops_on_signals
from utils.modality import Modality
from utils.runtime import Log, compile_parts, pick_device, unused_gpu_warning
from utils.settings import flat


class Setup:
    """The objects of a script, in the order in which it needs them. Nothing is written before all inputs are in order.

    Under torchrun, every process makes its own `Setup`; one of them writes.

    Args: config: of `load_config`; script: its name, for the log.
    """

    def __init__(self, config, script):
        self.config, self.script, self.notes = config, script, []
        self.weights = ""       # digest of the weights that a new network begins with
        if config.LOG.WANDB:
            check_wandb()
        device = pick_device(config.DEVICE)
        self.processes = join_processes(device.type)
        self.device = self.processes.own(device)
        with self.processes.in_turn():      # the first draws the demo's people
            self.data = open_dataset(config.DATASET.NAME, config.DATASET.ROOT, config.DATASET.TRIAL,
                                     config.DATASET.CHECK_COUNTS)
        modes = self.data.modes if config.TEST.MODE == "both" else (config.TEST.MODE,)
        self.retrievals = [self.data.retrieval(mode, config.TEST.TRIALS, config.TEST.PROTOCOL) for mode in modes]
        for retrieval in self.retrievals:
            check_matches(self.data, retrieval)

    def pseudo_labels(self):
        """Read the pseudo labels of train_clip.py: Modality -> (N,) int64, and a sentence on where they are from.

        Raises: UserError: there are none, or train_prepare.py would make others with these settings, unless
            PSEUDO_LABEL_DIR asks for them.
        """
        data, config = self.data, self.config

        def read():
            folder = find_pseudo_labels(config.PSEUDO_LABEL_DIR, config.OUTPUT_DIR, data.label_dirs())
            labels, made = load_pseudo_labels(folder, {m: len(images) for m, images in data.train.items()},
                                              self.manifest)
            others = made and label_differences(flat(made["config"]), made["epoch"], flat(as_dict(config)))
            if others and not config.PSEUDO_LABEL_DIR:
                raise UserError(f"pseudo labels in {quoted(folder)} were made with {others[0]}, not {others[1]}; run "
                                "train_prepare.py with these settings first, or set PSEUDO_LABEL_DIR to that folder to "
                                "use them on purpose")
            # Of unified labels a modality may lack some, and a prompt without an image would never learn.
            return renumbered(labels), f"pseudo labels from {folder}, {origin(made)}"

        return self.processes.once(read)

    def new_model(self):
        """Build the network with the weights that it begins with, on the device; notes their digest."""
        config = self.config
        with self.processes.in_turn():      # the first downloads the weights
            model = CCLNet(load_tower(config.MODEL.CLIP_WEIGHTS, config.MODEL.TOWER, config.MODEL.NAME,
                                      height=config.INPUT.HEIGHT, width=config.INPUT.WIDTH, stride=config.MODEL.STRIDE,
                                      seed=config.SEED, activation=config.MODEL.ACTIVATION))
        if model.tower.has_text:
            activation, known = find_activation(config.MODEL.CLIP_WEIGHTS, config.MODEL.ACTIVATION)
            self.notes.append(f"activation of {quoted(config.MODEL.CLIP_WEIGHTS)}: {activation} ({known})")
        if config.OPTIM.FACTORS:
            freeze(model.named_parameters(), config.OPTIM.FACTORS)
        self.weights = weights_digest(model.tower)
        return model.to(self.device, memory_format=torch.channels_last)     # which is fastest for convolutions

    def model_to_train(self, stage):
        """Build a `CCLNet` whose batch norm suits the processes and BATCH_NORM.SPLITS, compiled if COMPILE says so.

        Args: stage: "prepare" or "finetune".
        Raises: UserError: processes, splits and the batch do not divide, the method needs what the network or the stage
            lacks, or there is no compiler.
        """
        config, size = self.config, self.processes.size
        if config.CUDA_GRAPHS and (config.COMPILE or size > 1 or self.device.type != "cuda"):
            raise UserError(f"CUDA_GRAPHS is True on {self.device.type}, with {size} process(es) and COMPILE "
                            f"{config.COMPILE}; expected one process on a GPU, without COMPILE")
        rows = check_shares(config, size)
        model = self.new_model()
        check_needs(config, model.tower, stage)
        if max(size, config.BATCH_NORM.SPLITS) > 1:
            model = spread_batch_norm(model, config.BATCH_NORM.SPLITS, self.processes, rows)
        if config.COMPILE:
            compile_parts(model.tower, self.device)
        return model

    def clip(self):
        """Load the `open_clip.CLIP` whose texts train_clip.py uses."""
        return load_clip(self.config.MODEL.CLIP_WEIGHTS, self.config.MODEL.NAME, self.config.MODEL.ACTIVATION)

    @cached_property
    def manifest(self):
        """The `data_manifest` of the run's images."""
        return data_manifest(self.data, self.config.DATASET.CACHE_DIR, self.config.DATASET.IR_RANGE)

    @cached_property
    def cache(self):
        """Where all images of the run are held: DATASET.CACHE or what auto comes to; of several on CPUs always mmap."""
        if self.processes.size > 1 and self.device.type == "cpu":
            return "mmap"       # the processes of a machine share it; a copy each would cost its memory N times
        images = sum(len(images) for _, images in self.data.sets())
        return pick_cache(self.config.DATASET.CACHE, 3 * images * self.config.INPUT.HEIGHT * self.config.INPUT.WIDTH,
                          self.device)

    def banks(self, split):
        """Open the images of a split, "train" or "test": Modality -> `ImageBank`."""
        config = self.config
        with self.processes.in_turn():      # the first decodes the images
            return open_banks(self.data, split, self.manifest, config.INPUT.HEIGHT, config.INPUT.WIDTH,
                              config.DATASET.CACHE_DIR, self.device, self.cache, config.INPUT.NORMALISATION,
                              config.INPUT.RESIZE if split == "train" else "lanczos")

    def tester(self):
        """Build the `Tester` of TEST.MODE, or of the first mode if that is both."""
        test = self.config.TEST
        return Tester(self.data, self.banks("test"), self.retrievals[0], test.EVERY, test.BATCH_SIZE,
                      self.config.PRECISION, self.processes, test.MIRRORED)

    def facts(self):
        """Return what every checkpoint remembers of the run."""
        return {"config": as_dict(self.config), "dataset": self.data.name, "trial": self.config.DATASET.TRIAL,
                "manifest": self.manifest}

    def identity(self, checkpoint, mode):
        """Return the `configs.identity` of a test. Args: checkpoint: its SHA-256; mode: as TEST.MODE."""
        galleries = [gallery.tolist() for retrieval in self.retrievals if mode in (retrieval.mode, "both")
                     for gallery in retrieval.galleries]
        return identity(checkpoint, images_digest(self.manifest), mode, flat(as_dict(self.config)), galleries)

    @contextmanager
    def training(self, script, fresh, **more_facts):
        """Take the folder, find the state to resume from, check that it fits, and begin: gives the `Run`.

        Within the context SIGTERM, Ctrl-C, SIGUSR1 and SIGUSR2 end the run at once.

        Args:
            script: "prepare" or "clip"; fresh: keep old files aside instead of resuming; more_facts: further things
            that must not have changed.
        Raises: UserError: another run has the folder, or the state is of another configuration or other data.
        """
        config, facts = self.config, {**self.facts(), "weights": self.weights, **more_facts}
        with self.holding(config.OUTPUT_DIR):
            content, lines = self.processes.once(lambda: find_state(config.OUTPUT_DIR, script, fresh, facts))
            log = self.start(config.OUTPUT_DIR, *lines)
            run = Run(script, config.OUTPUT_DIR, log, facts, content, self.processes, self.about)
            if config.LOG.WANDB and self.processes.writes:
                run.events.others.append(WandbLog(config.OUTPUT_DIR, script, facts["config"]))
            run.begin()
            again = "the same command without --fresh" if fresh else "the same command"
            with stops_on_signals(lambda: f"{again} {run.position}"):
                try:
                    yield run
                finally:
                    run.written()

    @contextmanager
    def holding(self, folder):
        """Hold a folder for the process that writes; at the end the processes wait for one another."""
        with lock_folder(folder) if self.processes.writes else nullcontext():
            yield
            self.processes.leave()

    def start(self, folder, *lines):
        """Open the log in a folder, write config.yml, say what runs and on what images: the `Log`."""
        log = Log(folder if self.processes.writes else None)
        if self.processes.writes:
            write_atomically(Path(folder) / "config.yml", lambda file: file.write(self.config.dump().encode()))
        several = f" of {self.processes.size} processes" if self.processes.size > 1 else ""
        unused_gpu = self.config.DEVICE == "auto" and unused_gpu_warning()
        log.info("\n".join([
            f"{self.script} on {self.device}{several}, DATASET.CACHE {self.cache}, results in {folder}",
            *([f"warning: {unused_gpu}"] if unused_gpu else []), *self.data.counts(), *self.data.notes, *self.notes,
            *lines]))
        return log

    def about(self):
        """Describe the run for its page: method, settings, digests of what it began with, `provenance`."""
        return {"method": self.config.METHOD.NAME, "config": as_dict(self.config), "weights": self.weights,
                "images": images_digest(self.manifest), "train_images": images_digest(self.manifest, "train"),
                **provenance(self.device)}


def check_shares(config, size):
    """Refuse a batch that does not divide among processes and splits.

    Args: size: number of processes.
    Returns: images in a batch, visible and infrared ones, each as often as the method looks at it.
    Raises: UserError.
    """
    given, splits, rows = config.SAMPLER, config.BATCH_NORM.SPLITS, []
    for m, key, views in ((Modality.RGB, "RGB_CLUSTERS" if given.RGB_CLUSTERS else "CLUSTERS",
                           METHODS[config.METHOD.NAME].views), (Modality.IR, "CLUSTERS", 1)):
        images = given[key] * given.INSTANCES
        if images % math.lcm(size, splits):
            raise UserError(f"a batch of SAMPLER.{key} {given[key]} x SAMPLER.INSTANCES {given.INSTANCES} = {images} "
                            f"{m.value} images does not divide into equal parts of {size} process(es) and "
                            f"BATCH_NORM.SPLITS {splits}; change one of them, or torchrun's --nproc_per_node")
        rows.append(views * images)
    if splits % size and size % splits:
        raise UserError(f"BATCH_NORM.SPLITS {splits} and {size} processes do not divide one another; expected a "
                        "multiple of the other, so that a part lies in one process, or a process in one part")
    return rows


def check_needs(config, tower, stage):
    """Refuse a method that needs what the network or the stage does not have, before anything is trained.

    Args: tower: `Tower`. Raises: UserError.
    """
    settings = train_settings(config, stage)
    needs = settings.method(**settings.of_method).needs
    asks, other = ("METHOD.LINK_BY is", "prototype or centroid") if "LINK_BY" in config.METHOD else (
        f"METHOD.NAME {config.METHOD.NAME} asks for the", "another method")
    if stage == "finetune" and not tower.has_text:
        raise UserError(f"MODEL.TOWER {tower.kind} has no texts, which train_clip.py learns; use what train_prepare.py "
                        "has trained, or choose a CLIP")
    if settings.method.depths > tower.depths:
        raise UserError(f"{settings.method.__name__} needs shallow features beside deep ones, and MODEL.TOWER "
                        f"{tower.kind} has none; choose transreid, or METHOD.NAME unify, which can do without")
    if "text" in needs and stage == "prepare":
        raise UserError(f"{asks} text, but train_prepare.py has no texts: train_clip.py learns them; choose "
                        f"{other}")
    if "projection" in needs and not tower.has_text:
        raise UserError(f"{asks} projection, but MODEL.TOWER {tower.kind} has no texts to project to; "
                        f"choose {other}, or a CLIP")


def train_settings(config, stage):
    """Collect what the loop and its batches are told of a configuration. Args: stage: "prepare" or "finetune"."""
    section, given, sampler = config[stage.upper()], config.INPUT, config.SAMPLER
    every = given.JITTER if given.JITTER_OF == "all" else 0.0
    shared = {"flip": given.FLIP, "pad": given.PAD, "erase": given.ERASE, "first_jitter": every}
    return SimpleNamespace(
        seed=config.SEED,
        epochs=section.EPOCHS,
        cluster=SimpleNamespace(**_lower(config.CLUSTER)),
        method=METHODS[config.METHOD.NAME],         # a subclass of `Method`
        of_method={key: value for key, value in _lower(config.METHOD).items() if key != "name"},    # its arguments
        clusters_per_batch=sampler.CLUSTERS,        # P, of each modality
        rgb_clusters=sampler.RGB_CLUSTERS,          # P of visible images; 0: the same
        instances=sampler.INSTANCES,                # K
        across_cameras=sampler.CAMERAS == "others",
        iterations=sampler.ITERATIONS,              # of an epoch; 0: what the images give
        augmentation={
            Modality.RGB: Augmentation(grey=given.GREY, channel=given.CHANNEL, jitter=given.JITTER, **shared),
            Modality.IR: Augmentation(channel=given.IR_CHANNEL, mean=given.IR_MEAN, jitter=every, **shared)},
        optim=SimpleNamespace(**_lower(config.OPTIM)),
        restart_epoch=config.METHOD.CROSS_EPOCH if section.RESTART_AT_CROSS else None,  # optimiser and rates
        allow_collapse=config.PREPARE.ALLOW_COLLAPSE,
        precision=config.PRECISION, embed_batch_size=config.TEST.BATCH_SIZE, cuda_graphs=config.CUDA_GRAPHS)


def prompt_settings(config):
    """Collect what the prompt stage is told of a configuration."""
    return SimpleNamespace(seed=config.SEED, **_lower(config.PROMPT), precision=config.PRECISION,
                           embed_batch_size=config.TEST.BATCH_SIZE, cuda_graphs=config.CUDA_GRAPHS)


def _lower(section):
    return {key.lower(): value for key, value in section.items()}
