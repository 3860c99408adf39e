"""Every setting reaches the objects that a run is built of: with another value, another object and no other."""
import json
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

import processor.setup
from configs.defaults import load_config
from configs.settings import SETTINGS
from data.batches import Batches
from data.pseudo_labels import FILE_NAMES
from loss.methods import METHODS
from processor.setup import Setup, prompt_settings, train_settings
from tests import scripts
from utils.errors import UserError
from utils.modality import Modality
from utils.settings import Range

RGB, IR = Modality


MADE = {        # what the scripts build of a configuration
    "setup": lambda b: Setup(b.config, "train_prepare"),
    "prepare": lambda b: train_settings(b.config, "prepare"),
    "finetune": lambda b: train_settings(b.config, "finetune"), "prompt": lambda b: prompt_settings(b.config),
    "tester": lambda b: b.setup.tester(),
    "model": lambda b: b.setup.model_to_train("prepare"), "images": lambda b: b.setup.banks("train"),
    "labels": lambda b: {m: np.arange(len(b.images[m])) % 5 for m in Modality},
    "batches": lambda b: Batches(b.images, b.labels, b.prepare, 1)}


class Built:
    """What `MADE` makes of a configuration, when it is asked for; `seen` is what stubs saw of it.

    Args: words: KEY -> VALUE.
    """

    def __init__(self, words):
        self.config, self.seen = load_config(None, [str(word) for pair in words.items() for word in pair]), {}

    def __getattr__(self, name):
        setattr(self, name, MADE[name](self))
        return getattr(self, name)

    def policies(self, name):
        return [getattr(self.prepare.augmentation[m], name) for m in Modality]

    def run_folder(self):
        assert self.model
        with self.setup.training("clip", fresh=False) as run:
            return str(run.output_dir)

    def weights(self):
        """The arguments with which the network's weights are asked for."""
        assert self.model and not self.setup.clip()
        return self.seen["load_tower"], self.seen["load_clip"]

    def label_folder(self):
        return self.setup.pseudo_labels()[1].split()[3].rstrip(",")        # "pseudo labels from FOLDER, ..."

    def cache_files(self):
        assert self.images
        return any(Path("cache").glob("*rgb*.npy"))

    def resized(self):
        """How training and test images were resized."""
        assert self.images and self.tester
        return [json.loads((self.setup.data.cache_dir("") / f"{split}_ir_resized_manifest.json").read_text())
                .get("resize", "lanczos") for split in ("train", "test")]


def row(value, get, becomes=None):
    """Another value of a setting; what is read off the objects; what that becomes, the value itself if None."""
    return value, get, value if becomes is None else becomes


ROWS = {
    "OUTPUT_DIR": row("other", Built.run_folder),
    "SEED": row(7, lambda b: (b.prepare.seed, b.finetune.seed, b.prompt.seed), (7, 7, 7)),
    "DEVICE": row("auto", lambda b: b.setup and b.seen["pick_device"]),
    "PRECISION": row("bf16", lambda b: (b.prepare.precision, b.prompt.precision, b.tester.precision),
                     ("bf16",) * 3),
    "COMPILE": row(True, lambda b: b.model.tower is b.seen.get("compile_parts")),
    "CUDA_GRAPHS": row(True, lambda b: (b.prepare.cuda_graphs, b.prompt.cuda_graphs), (True, True)),
    "PSEUDO_LABEL_DIR": row("labels", Built.label_folder),
    "DATASET.CACHE_DIR": row("cache", Built.cache_files, True),
    "DATASET.CACHE": row("device", lambda b: b.setup.cache),
    "INPUT.HEIGHT": row(48, lambda b: (b.images[RGB].batch([0]).shape[2], b.model.describe()["height"]), (48, 48)),
    "INPUT.WIDTH": row(32, lambda b: (b.images[IR].batch([0]).shape[3], b.model.describe()["width"]), (32, 32)),
    "INPUT.NORMALISATION": row("half", lambda b: b.images[IR].normalisation),
    "INPUT.GREY": row(0.7, lambda b: b.policies("grey"), [0.7, 0.0]),
    "INPUT.FLIP": row(0.3, lambda b: b.policies("flip"), [0.3, 0.3]),
    "INPUT.PAD": row(4, lambda b: b.policies("pad"), [4, 4]),
    "INPUT.ERASE": row(0.6, lambda b: b.policies("erase"), [0.6, 0.6]),
    "INPUT.CHANNEL": row(0.4, lambda b: b.policies("channel"), [0.4, 0.0]),
    "INPUT.IR_CHANNEL": row(0.4, lambda b: b.policies("channel"), [0.0, 0.4]),
    "INPUT.IR_MEAN": row(0.2, lambda b: b.policies("mean"), [0.0, 0.2]),
    "INPUT.JITTER": row(0.3, lambda b: b.policies("jitter"), [0.3, 0.0]),
    "INPUT.RESIZE": row("bicubic", Built.resized, ["bicubic", "lanczos"]),
    "MODEL.NAME": row("RN101", lambda b: [found[-1] for found in b.weights()], ["RN101"] * 2),
    "MODEL.CLIP_WEIGHTS": row("clip.pt", lambda b: [found[0] for found in b.weights()], ["clip.pt"] * 2),
    "MODEL.TOWER": row("clip_resnet", lambda b: b.weights()[0][1]),
    "MODEL.ACTIVATION": row("gelu", lambda b: b.weights() and [b.seen["more"]["activation"], b.seen["activation"]],
                            ["gelu", "gelu"]),
    "MODEL.STRIDE": row(8, lambda b: b.weights() and b.seen["more"]["stride"]),
    "METHOD.NAME": row("pgm", lambda b: b.prepare.method, METHODS["pgm"]),
    "BATCH_NORM.SPLITS": row(2, lambda b: getattr(b.model.neck, "parts", 1)),
    "SAMPLER.CLUSTERS": row(3, lambda b: len(set(b.batches[0].labels[IR]))),
    "SAMPLER.RGB_CLUSTERS": row(1, lambda b: [len(set(b.batches[0].labels[m])) for m in Modality], [1, 2]),
    "SAMPLER.CAMERAS": row("others", lambda b: b.prepare.across_cameras, True),
    "SAMPLER.ITERATIONS": row(5, lambda b: len(b.batches)),
    "SAMPLER.INSTANCES": row(4, lambda b: np.bincount(b.batches[0].labels[IR]).max()),
    "PREPARE.EPOCHS": row(6, lambda b: b.prepare.epochs),
    "PREPARE.ALLOW_COLLAPSE": row(True, lambda b: b.prepare.allow_collapse),
    "PREPARE.RESTART_AT_CROSS": row(True, lambda b: (b.prepare.restart_epoch, b.finetune.restart_epoch), (2, None)),
    "FINETUNE.EPOCHS": row(5, lambda b: b.finetune.epochs),
    "FINETUNE.RESTART_AT_CROSS": row(True, lambda b: (b.prepare.restart_epoch, b.finetune.restart_epoch), (None, 2)),
    "TEST.MODE": row("both", lambda b: [retrieval.mode for retrieval in b.setup.retrievals], ["all", "indoor"]),
    "TEST.PROTOCOL": row("original-1", lambda b: b.setup.retrievals[0].protocol,
                         "SYSU-MM01 all-search single-shot, original permutations 1-2"),
    "TEST.TRIALS": row(3, lambda b: len(b.setup.retrievals[0].trials)),
    "TEST.EVERY": row(2, lambda b: [e for e in range(1, 8) if b.tester.is_due(e, 7)], [2, 4, 6, 7]),
    "TEST.MIRRORED": row(True, lambda b: b.tester.mirrored),
    "TEST.BATCH_SIZE": row(7, lambda b: (b.prepare.embed_batch_size, b.prompt.embed_batch_size,
                                         b.tester.batch_size), (7, 7, 7)),
    "LOG.WANDB": row(True, lambda b: b.setup and "check_wandb" in b.seen),
}
BESIDE = {      # keys that one configuration cannot vary, and FINETUNE.LABEL_SMOOTHING, which has no object of its own
    "DATASET.NAME": "test_data_set_settings", "DATASET.ROOT": "test_data_set_settings",
    "DATASET.TRIAL": "test_data_set_settings", "DATASET.CHECK_COUNTS": "test_data_set_settings",
    "DATASET.IR_RANGE": "test_data_set_settings",
    "INPUT.JITTER_OF": "test_batches.py: test_colour_jitter",
    "FINETUNE.LABEL_SMOOTHING": "test_setup.py: test_train_clip_builds_the_fine_tune_from_what_was_learned"}


SECTIONS = {    # that are passed on whole; golden numbers show what becomes of them
    "CLUSTER": lambda config: train_settings(config, "finetune").cluster,
    "OPTIM": lambda config: train_settings(config, "finetune").optim, "PROMPT": prompt_settings}


def test_the_tables_hold_every_key():
    assert sorted([*ROWS, *BESIDE]) == sorted(setting.name for setting in SETTINGS
                                              if setting.name.split(".")[0] not in SECTIONS)


def another(setting):
    """A value of a setting that is not its default."""
    if isinstance(setting.default, list):
        return {"OPTIM.STEPS": [3, 5], "OPTIM.FACTORS": [["neck.", 0.5]]}[setting.name]
    if isinstance(setting.allowed, Range):
        value = setting.default + 1 if setting.allowed.whole else setting.default * 0.75
        return type(setting.default)(value)
    return next(choice for choice in setting.allowed if choice != setting.default)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_passed_on_whole(section):
    others = {setting.name: another(setting) for setting in SETTINGS if setting.name.startswith(f"{section}.")}
    found = SECTIONS[section](load_config(None, [str(word) for pair in others.items() for word in pair]))
    assert {key: getattr(found, key.partition(".")[2].lower()) for key in others} == others


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = trees.people_tree(tmp_path_factory.mktemp("people") / "data", ids={"train": (1, 2), "val": (3,),
                                                                             "test": (4, 5)})
    trees.permutation_file(root, trials=3, persons=5)
    return root


@pytest.fixture(scope="module")
def read(people, tiny_clip_file, tmp_path_factory):
    """A function: (what to read off the objects, changes of the settings) -> that; two folders of labels are there.

    Without changes they are read off the same objects each time.
    """
    def load_tower(weights, tower, name, **more):
        now.seen.update(load_tower=(weights, tower, name), more=more)
        return real_tower(tiny_clip_file, height=more["height"], width=more["width"])

    def load_clip(weights, name, activation):
        now.seen.update(load_clip=(weights, name), activation=activation)

    def pick_device(name):
        now.seen["pick_device"] = name
        return real_device("cpu")

    def read(get, changes=None):
        nonlocal now
        now = Built({**words, **changes}) if changes else plain
        return get(now)

    real_tower, real_device = processor.setup.load_tower, processor.setup.pick_device
    words = {**scripts.SMALL, "DATASET.ROOT": people, "MODEL.CLIP_WEIGHTS": tiny_clip_file, "OUTPUT_DIR": "run"}
    plain = now = Built(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reach"))
        for folder in (Path("run/pseudo_labels"), Path("labels")):
            folder.mkdir(parents=True)
            for m, images in ((RGB, 24), (IR, 12)):     # three people, two images of each camera
                np.save(folder / FILE_NAMES[m], np.arange(images) % 2)
        for function in (load_tower, load_clip, pick_device):
            patch.setattr(processor.setup, function.__name__, function)
        patch.setattr(processor.setup, "check_wandb", lambda: now.seen.update(check_wandb=True))
        patch.setattr(processor.setup, "compile_parts", lambda tower, device: now.seen.update(compile_parts=tower))
        yield read


@pytest.mark.parametrize("key", ROWS)
def test_setting_reaches_its_use(read, key):
    value, get, becomes = ROWS[key]
    before, found = read(get), read(get, {key: value})
    assert found == becomes, key
    assert before != found, f"{key} {value} changes nothing"


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_settings_reach_it(name):
    defaults = {setting.name.lower(): setting.default for setting in METHODS[name].declared()}
    for setting in METHODS[name].declared():
        config = load_config(None, ["METHOD.NAME", name, f"METHOD.{setting.name}", str(another(setting))])
        for settings in (train_settings(config, stage) for stage in ("prepare", "finetune")):
            made = vars(settings.method(**settings.of_method).settings)
            assert made == {**defaults, setting.name.lower(): another(setting)}


def test_data_set_settings(people, tmp_path):
    """NAME chooses the layout, ROOT its folder, TRIAL the lists that are read, CHECK_COUNTS whether to count people.

    IR_RANGE chooses how infrared images of more than 8 bits become grey.
    """
    regdb = trees.regdb_tree(tmp_path / "RegDB", trials=(1, 2))

    def setup(name, root, trial, check, ir_range="[]"):
        return Setup(load_config(None, ["DATASET.NAME", name, "DATASET.ROOT", str(root), "DATASET.TRIAL", str(trial),
                                        "DATASET.CHECK_COUNTS", str(check), "DATASET.IR_RANGE", ir_range,
                                        "DEVICE", "cpu"]), "test")

    def read(*words):
        return setup(*words).data

    first, second = (read("regdb", regdb, trial, False) for trial in (1, 2))
    for path in regdb.glob("Thermal/*/*"):
        Image.fromarray(np.array(Image.open(path)).astype(np.uint16)).save(path, "PNG")
    for ir_range, expected in (("[]", [0, 255]), ("[7, 99.5]", [7, 99.5])):
        assert setup("regdb", regdb, 1, False, ir_range).manifest["train"]["ir"]["range"] == expected
    assert (first.name, first.trial, second.trial) == ("RegDB", 1, 2) and first.root == regdb
    assert first.train[RGB].paths != second.train[RGB].paths
    assert read("sysu", people, 1, False).name == "SYSU-MM01"
    with pytest.raises(UserError, match="2,060|2060"):
        read("regdb", regdb, 1, True)
