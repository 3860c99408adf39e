"""The released settings, number by number, and the field of a stage that each of them becomes."""
import dataclasses
import re
from contextlib import nullcontext

import pytest
from loss.cross_memory import MemorySettings

from clustering.labels import ClusterSettings
from configs.defaults import as_dict, load_config
from data import augment
from data.augment import Augmentation
from model.prompt import LEARNED_WORDS, TEMPLATES
from model.towers.clip_resnet import STRIDE
from processor.prompt import PromptSettings
from processor.setup import check_shares, prompt_settings, train_settings
from processor.train import TrainSettings
from utils.errors import UserError
from utils.modality import Modality
from utils.settings import flat

SYSU = {     # the released recipe
    "INPUT.HEIGHT": 288, "INPUT.WIDTH": 144,
    "INPUT.GREY": 0.5, "INPUT.FLIP": 0.5, "INPUT.PAD": 10, "INPUT.ERASE": 0.5,
    "INPUT.NORMALISATION": "imagenet", "MODEL.NAME": "RN50", "MODEL.CLIP_WEIGHTS": "openai", "MODEL.STRIDE": 16,
    "MODEL.TOWER": "",
    "CLUSTER.K1": 30, "CLUSTER.K2": 6, "CLUSTER.EPS": 0.6, "CLUSTER.MIN_SAMPLES": 4,
    "METHOD.TEMPERATURE": 0.05, "METHOD.MOMENTUM": 0.1,
    "METHOD.CROSS_EPOCH": 61, "METHOD.SWAP_SCALE": 0.1, "METHOD.SWAP_ORDER": "released",
    "METHOD.NAME": "cclnet",
    "SAMPLER.CLUSTERS": 4, "SAMPLER.INSTANCES": 16,
    "OPTIM.LR": 3.5e-4, "OPTIM.BIAS_LR_FACTOR": 2.0, "OPTIM.WEIGHT_DECAY": 5e-4,
    "OPTIM.WARMUP_EPOCHS": 10, "OPTIM.WARMUP_FACTOR": 0.01, "OPTIM.STEPS": [30, 50], "OPTIM.GAMMA": 0.1,
    "PREPARE.EPOCHS": 120, "PREPARE.ALLOW_COLLAPSE": False,
    "PROMPT.EPOCHS": 60, "PROMPT.BATCH_SIZE": 128,
    "PROMPT.LR": 3.5e-4, "PROMPT.LR_MIN": 1e-6, "PROMPT.WARMUP_LR": 1e-5, "PROMPT.WARMUP_EPOCHS": 5,
    "PROMPT.WEIGHT_DECAY": 1e-4,
    "FINETUNE.EPOCHS": 120, "FINETUNE.LABEL_SMOOTHING": 0.1, "FINETUNE.RESTART_AT_CROSS": False,
    "TEST.MODE": "", "TEST.PROTOCOL": "python", "TEST.TRIALS": 10, "TEST.EVERY": 5, "TEST.BATCH_SIZE": 64,
    "PRECISION": "released", "DATASET.NAME": "sysu", "DATASET.ROOT": "dataset/SYSU-MM01",
}
OURS = {     # what the released code has no setting for
    "OUTPUT_DIR": "runs/sysu", "SEED": 1, "DEVICE": "auto", "COMPILE": False, "PSEUDO_LABEL_DIR": "",
    "DATASET.TRIAL": 1, "DATASET.CHECK_COUNTS": True, "DATASET.CACHE_DIR": "", "DATASET.CACHE": "auto",
    "CHECKPOINT.MINUTES": 10.0, "BATCH_NORM.SPLITS": 1, "OPTIM.FACTORS": [], "LOG.WANDB": False,
    "METHOD.LINK_BY": "", "METHOD.RENEWAL": "", "METHOD.GRADIENTS": "exact",
}
ELSEWHERE = {    # of other methods' released codes
    "INPUT.CHANNEL": 0.0, "METHOD.CROSS_WEIGHT": 0.25, "METHOD.HYBRID_WEIGHT": 0.5, "METHOD.RELATION": "released",
    "METHOD.RELATION_WEIGHT": 10.0, "METHOD.TOP_IMAGES": 20, "PREPARE.RESTART_AT_CROSS": False,
}
REGDB = {    # where RegDB's recipe differs
    "OUTPUT_DIR": "runs/regdb/trial1", "DATASET.NAME": "regdb", "DATASET.ROOT": "dataset/RegDB",
    "INPUT.FLIP": 0.0, "INPUT.PAD": 0, "CLUSTER.K1": 10, "SAMPLER.INSTANCES": 8, "PROMPT.BATCH_SIZE": 32,
    "FINETUNE.RESTART_AT_CROSS": True, "TEST.MODE": "v2t", "TEST.BATCH_SIZE": 128,
}


LLCM = {"OUTPUT_DIR": "runs/llcm", "DATASET.NAME": "llcm", "DATASET.ROOT": "dataset/LLCM", "TEST.MODE": "v2t"}
VIT = {      # CLIP-ReID's vision transformer
    "MODEL.NAME": "ViT-B-16", "INPUT.NORMALISATION": "half", "OPTIM.LR": 5e-6, "OPTIM.WEIGHT_DECAY": 1e-4,
    "OPTIM.WARMUP_FACTOR": 0.1,
}


@pytest.mark.parametrize("file, differs", [
    (None, {}), ("configs/sysu.yml", {}), ("configs/regdb.yml", REGDB), ("configs/llcm.yml", LLCM),
    ("configs/sysu_vit.yml", {**VIT, "OUTPUT_DIR": "runs/sysu_vit"}),
    ("configs/regdb_vit.yml", {**REGDB, **VIT, "OUTPUT_DIR": "runs/regdb_vit/trial1"}),
    ("configs/llcm_vit.yml", {**LLCM, **VIT, "OUTPUT_DIR": "runs/llcm_vit"})])
def test_every_default_is_the_released_one(file, differs):
    assert flat(as_dict(load_config(file))) == {**SYSU, **OURS, **ELSEWHERE, **differs}


def test_numbers_that_are_no_settings():
    """Images are normalised with ImageNet's numbers, not CLIP's; erasing is torchvision's; four words are learned."""
    assert (augment.MEAN, augment.STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (augment.ERASE_AREA, augment.ERASE_ASPECT, augment.ERASE_TRIES) == ((0.02, 0.33), (0.3, 3.3), 10)
    assert TEMPLATES == {Modality.RGB: "A visible photo of a X X X X person.",
                         Modality.IR: "An infrared photo of a X X X X person."}
    assert (LEARNED_WORDS, STRIDE) == (4, 16)


# A different number for every key, so that no two fields can be exchanged without a difference.
ODD = {"SEED": 3, "PRECISION": "tf32", "CLUSTER.K1": 17, "CLUSTER.K2": 5, "CLUSTER.EPS": 0.45,
       "CLUSTER.MIN_SAMPLES": 6, "METHOD.TEMPERATURE": 0.07, "METHOD.MOMENTUM": 0.3, "METHOD.CROSS_EPOCH": 41,
       "METHOD.SWAP_SCALE": 0.2, "METHOD.SWAP_ORDER": "simultaneous", "METHOD.NAME": "rpnr",
       "METHOD.LINK_BY": "projection", "METHOD.RENEWAL": "hard", "METHOD.CROSS_WEIGHT": 0.65,
       "METHOD.GRADIENTS": "released", "METHOD.HYBRID_WEIGHT": 0.75, "METHOD.RELATION": "normalised",
       "METHOD.RELATION_WEIGHT": 8.5, "METHOD.TOP_IMAGES": 13, "INPUT.CHANNEL": 0.95,
       "SAMPLER.CLUSTERS": 9, "SAMPLER.INSTANCES": 11,
       "INPUT.GREY": 0.15, "INPUT.FLIP": 0.25, "INPUT.PAD": 7, "INPUT.ERASE": 0.35, "OPTIM.LR": 0.002,
       "OPTIM.BIAS_LR_FACTOR": 1.5, "OPTIM.WEIGHT_DECAY": 0.003, "OPTIM.WARMUP_EPOCHS": 12,
       "OPTIM.WARMUP_FACTOR": 0.02, "OPTIM.STEPS": [21, 31], "OPTIM.GAMMA": 0.4, "TEST.BATCH_SIZE": 48,
       "OPTIM.FACTORS": [["tower.", 0.5]]}
ODD_PROMPT = {"SEED": 4, "PRECISION": "fp32", "PROMPT.EPOCHS": 14, "PROMPT.BATCH_SIZE": 26, "PROMPT.LR": 0.006,
              "PROMPT.LR_MIN": 0.0007, "PROMPT.WARMUP_LR": 0.0008, "PROMPT.WARMUP_EPOCHS": 8,
              "PROMPT.WEIGHT_DECAY": 0.009, "TEST.BATCH_SIZE": 49}


def with_settings(settings):
    return load_config(None, [str(word) for pair in settings.items() for word in pair])


def test_fields_of_a_training_stage():
    expected = dict(
        seed=3, epochs=77, cluster=ClusterSettings(k1=17, k2=5, eps=0.45, min_samples=6),
        memory=MemorySettings(
            method="rpnr", match_by="projection", temperature=0.07, momentum=0.3, renewal="hard", swap_epoch=41,
            swap_scale=0.2, swap_order="simultaneous", cross_weight=0.65, gradients="released", hybrid_weight=0.75,
            relation="normalised", relation_weight=8.5, top_images=13),
        clusters_per_batch=9, instances=11,
        augmentation={Modality.RGB: Augmentation(grey=0.15, flip=0.25, pad=7, erase=0.35, channel=0.95),
                      Modality.IR: Augmentation(grey=0.0, flip=0.25, pad=7, erase=0.35)},
        lr=0.002, bias_lr_factor=1.5, weight_decay=0.003, warmup_epochs=12, warmup_factor=0.02, lr_steps=(21, 31),
        lr_gamma=0.4, lr_factors=(("tower.", 0.5),), restart_epoch=None, allow_collapse=True, precision="tf32",
        embed_batch_size=48)
    assert {field.name for field in dataclasses.fields(TrainSettings)} == set(expected)
    config = with_settings(ODD)
    assert train_settings(config, 77) == TrainSettings(**expected)
    assert train_settings(config, 77, restart=True) == TrainSettings(**{**expected, "restart_epoch": 41})
    assert train_settings(config, 77, allow_collapse=False) == TrainSettings(**{**expected, "allow_collapse": False})


def test_fields_of_the_prompt_stage():
    expected = dict(seed=4, epochs=14, batch_size=26, lr=0.006, lr_min=0.0007, warmup_lr=0.0008, warmup_epochs=8,
                    weight_decay=0.009, precision="fp32", embed_batch_size=49)
    assert {field.name for field in dataclasses.fields(PromptSettings)} == set(expected)
    assert prompt_settings(with_settings(ODD_PROMPT)) == PromptSettings(**expected)


def test_settings_cannot_change_under_way():
    config = load_config()
    settings = train_settings(config, 9)
    for part, field in ((settings, "seed"), (settings.memory, "momentum"), (settings.cluster, "eps"),
                        (settings.augmentation[Modality.RGB], "grey"), (prompt_settings(config), "lr")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, 1)


@pytest.mark.parametrize("batch, splits, size, sentence", [
    ((8, 4), 1, 1, None), ((8, 4), 2, 1, None), ((8, 4), 1, 4, None), ((8, 4), 4, 2, None), ((8, 4), 2, 4, None),
    ((3, 3), 1, 2, "SAMPLER.CLUSTERS 3 x SAMPLER.INSTANCES 3 = 9 images of each modality cannot be shared equally by "),
    ((3, 4), 8, 1, "12 images of each modality cannot be split into BATCH_NORM.SPLITS 8 equal parts; "),
    ((3, 4), 3, 2, "BATCH_NORM.SPLITS 3 and 2 processes do not divide one another; "),
])
def test_batches_that_processes_and_splits_share(batch, splits, size, sentence):
    config = with_settings({"SAMPLER.CLUSTERS": batch[0], "SAMPLER.INSTANCES": batch[1], "BATCH_NORM.SPLITS": splits})
    with nullcontext() if sentence is None else pytest.raises(UserError, match=re.escape(sentence)):
        check_shares(config, size)


def test_released_learning_rates():
    """Linear from 0.01 to 1 over 10 epochs, a tenth from epoch 30 on and again from 50 on; RegDB anew from 61 on."""
    factors = {1: 0.109, 5: 0.505, 9: 0.901, 10: 1.0, 29: 1.0, 30: 0.1, 49: 0.1, 50: 0.01, 60: 0.01}
    after = {61: (0.01, 0.109), 70: (0.01, 1.0), 89: (0.01, 1.0), 90: (0.01, 0.1), 120: (0.01, 0.01)}
    sysu = train_settings(load_config("configs/sysu.yml"), 120)
    regdb = train_settings(load_config("configs/regdb.yml"), 120, restart=True)
    for number, settings in enumerate((sysu, regdb)):
        for epoch, factor in {**factors, **{epoch: pair[number] for epoch, pair in after.items()}}.items():
            assert settings.lr_factor(epoch) == pytest.approx(factor), epoch
