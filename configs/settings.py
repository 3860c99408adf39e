"""Every setting with its default, what it may be and what it does; a new one is a line here. docs/settings.md is made
from this table. The defaults are the released recipe for SYSU-MM01; the .yml files hold only what differs.

What a method sets (METHOD.TEMPERATURE and others) is declared beside its class in loss/.
"""
from math import inf

from utils.settings import Accepted, Range, Setting

COUNT, SHARE, FACTOR = Range(1, whole=True), Range(0, 1), Range(0)
PATHS = ("OUTPUT_DIR", "PSEUDO_LABEL_DIR", "DATASET.ROOT", "DATASET.CACHE_DIR", "MODEL.CLIP_WEIGHTS")  # ~ is expanded

SETTINGS = (
    Setting("OUTPUT_DIR", "runs/sysu", "a folder such as runs/sysu",
            "everything a run writes; {trial} in it becomes DATASET.TRIAL"),
    Setting("SEED", 1, Range(0, 2 ** 63 - 1, whole=True), "of every random number (utils/seeding.py)"),
    Setting("DEVICE", "auto", ("auto", "cuda", "cpu"), "auto: a GPU where there is one"),
    Setting("PRECISION", "released", ("released", "fp32", "tf32", "bf16"), "of the image side (utils/runtime.py)"),
    Setting("COMPILE", False, (True, False), "compile the image encoder by torch.compile: minutes at the start"),
    Setting("CUDA_GRAPHS", False, (True, False), "one GPU, without COMPILE: launch the network's passes as a whole "
            "(model/replay.py)"),
    Setting("PSEUDO_LABEL_DIR", "", "a folder",
            "of the pseudo labels; empty: OUTPUT_DIR/pseudo_labels, else ROOT/pseudo_labels (RegDB: trialN in it)"),

    Setting("DATASET.NAME", "sysu", "sysu, regdb, llcm, csv or demo", "sysu | regdb | llcm | csv (own images) | demo"),
    Setting("DATASET.ROOT", "dataset/SYSU-MM01", "a folder",
            "folder of the images, in the layout of docs/data.md; demo: dataset/demo"),
    Setting("DATASET.TRIAL", 1, COUNT, "RegDB: which of its ten splits"),
    Setting("DATASET.CHECK_COUNTS", True, (True, False), "False: a subset, or one's own people in the same layout"),
    Setting("DATASET.CACHE_DIR", "", "a folder", "of the decoded images (RegDB: of trialN with them); empty: ROOT"),
    Setting("DATASET.IR_RANGE", [], Accepted(
        "two numbers, the lower one first, such as [7000, 9000]",
        lambda pair: pair == [] or len(pair) == 2 and -inf < pair[0] < pair[1] < inf),
            "values of infrared images of more than 8 bits that become black and white; empty: the least and greatest "
            "in all of them"),
    Setting("DATASET.CACHE", "auto", ("auto", "mmap", "device"), "where decoded images are held (data/images.py)"),

    Setting("INPUT.HEIGHT", 288, Range(1, 2048, whole=True), "pixels to which images are resized"),
    Setting("INPUT.WIDTH", 144, Range(1, 2048, whole=True), "pixels to which images are resized"),
    Setting("INPUT.NORMALISATION", "imagenet", ("imagenet", "clip", "half"),
            "mean and standard deviation (data/augment.py)"),
    Setting("INPUT.GREY", 0.5, SHARE, "probability of grey, visible images"),
    Setting("INPUT.FLIP", 0.5, SHARE, "probability of a left-right flip"),
    Setting("INPUT.PAD", 10, Range(0, 1000, whole=True), "pixels of zero padding before the random crop"),
    Setting("INPUT.ERASE", 0.5, SHARE, "probability of random erasing"),
    Setting("INPUT.CHANNEL", 0.0, SHARE, "probability of one channel in place of all three, visible images (methods "
            "with two views: of the second view, where the released codes have 1)"),
    Setting("INPUT.IR_CHANNEL", 0.0, SHARE, "the same of infrared images, after normalising (released codes: 0.75)"),
    Setting("INPUT.IR_MEAN", 0.0, SHARE, "probability of the channels' weighted mean in place of all three, infrared "
            "images (released codes: 0.125)"),
    Setting("INPUT.JITTER", 0.0, Range(0, 0.5), "strength of colour jitter: brightness, contrast, saturation and hue"),
    Setting("INPUT.JITTER_OF", "visible", ("visible", "all"), "visible: of visible images (methods with two views: "
            "of the second view); all: of all, infrared ones too"),
    Setting("INPUT.RESIZE", "lanczos", ("lanczos", "bicubic", "bilinear"), "how training images are resized; test "
            "images: lanczos"),

    Setting("MODEL.NAME", "RN50", ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14",
                                   "ViT-L-14-336"), "which of OpenAI's CLIPs; a file's kind is read from it"),
    Setting("MODEL.CLIP_WEIGHTS", "openai", "openai, imagenet or a file", "openai (MODEL.NAME) and imagenet (the AGW "
            "towers' ResNet-50) are downloaded"),
    Setting("MODEL.ACTIVATION", "auto", ("auto", "gelu", "quick_gelu"), "of a CLIP's transformers: gelu in most of "
            "open_clip's own, quick_gelu in OpenAI's; auto: by the file's name (docs/towers.md)"),
    Setting("MODEL.STRIDE", 16, Range(1, 2048, whole=True),
            "pixels between patches of a vision transformer; a ResNet's map has always 16"),
    Setting("MODEL.TOWER", "", "a tower", "the network: clip_resnet, clip_vit, agw, agw_plain, transreid or one of "
            "your own; empty: that of the weights"),

    Setting("CLUSTER.K1", 30, COUNT, "neighbours that count as near"),
    Setting("CLUSTER.K2", 6, COUNT, "neighbours whose encodings are averaged"),
    Setting("CLUSTER.EPS", 0.6, SHARE, "largest Jaccard distance of DBSCAN neighbours"),
    Setting("CLUSTER.MIN_SAMPLES", 4, COUNT,
            "neighbours, itself among them, that make an image the core of a cluster"),

    Setting("METHOD.NAME", "cclnet", "cclnet, pgm, rpnr, nulc, sdcl, unify, none or one of your own",
            "what is done with clusters and their links (docs/methods.md)"),

    Setting("BATCH_NORM.SPLITS", 1, COUNT,
            "parts of a batch with statistics of their own, as DataParallel on so many GPUs"),
    Setting("SAMPLER.CLUSTERS", 4, COUNT, "P per modality and batch"),
    Setting("SAMPLER.RGB_CLUSTERS", 0, Range(0, whole=True), "P of visible images; 0: CLUSTERS, as of infrared ones"),
    Setting("SAMPLER.INSTANCES", 16, COUNT, "K images of each"),
    Setting("SAMPLER.CAMERAS", "any", ("any", "others"), "others: after a cluster's first image those of other "
            "cameras, where it has any"),
    Setting("SAMPLER.ITERATIONS", 0, Range(0, whole=True), "batches of an epoch; 0: as many as the images give"),

    Setting("OPTIM.NAME", "adam", ("adam", "sgd"), "of the image side; sgd has a momentum of 0.9"),
    Setting("OPTIM.LR", 3.5e-4, Range(0, above=True), "of the image side"),
    Setting("OPTIM.BIAS_LR_FACTOR", 2.0, FACTOR, "on the learning rate of biases"),
    Setting("OPTIM.WEIGHT_DECAY", 5e-4, FACTOR, "added to the gradients"),
    Setting("OPTIM.WARMUP_EPOCHS", 10, Range(0, whole=True), "in which the learning rate rises to LR, linearly"),
    Setting("OPTIM.WARMUP_FACTOR", 0.01, FACTOR, "share of LR at the start of the warm-up"),
    Setting("OPTIM.STEPS", [30, 50], Accepted(
        "a list of epochs such as [30, 50]", lambda steps: all(type(step) is int and step >= 0 for step in steps)),
            "epochs from which the learning rate is multiplied by GAMMA"),
    Setting("OPTIM.GAMMA", 0.1, FACTOR, "factor on the learning rate at each of STEPS"),
    Setting("OPTIM.FACTORS", [], Accepted(
        'pairs of the start of a weight\'s name and a factor from 0 on, such as [["tower.stems.", 0]]',
        lambda pairs: all(isinstance(start, str) and factor >= 0 for start, factor in pairs)),
            "[start of a name, factor on its learning rate] pairs; 0 freezes"),

    Setting("PREPARE.EPOCHS", 120, COUNT, "of train_prepare.py"),
    Setting("PREPARE.ALLOW_COLLAPSE", False, (True, False), "train on though a modality stays in one cluster"),
    Setting("PREPARE.RESTART_AT_CROSS", False, (True, False),
            "new optimiser and new warm-up at METHOD.CROSS_EPOCH, as the second runs of PGM and RPNR"),
    Setting("PROMPT.EPOCHS", 60, COUNT, "of train_clip.py's first stage"),
    Setting("PROMPT.BATCH_SIZE", 128, COUNT, "pairs of a visible and an infrared image"),
    Setting("PROMPT.LR", 3.5e-4, Range(0, above=True), "of Adam, before the cosine"),
    Setting("PROMPT.LR_MIN", 1e-6, FACTOR, "at the end of the cosine"),
    Setting("PROMPT.WARMUP_LR", 1e-5, FACTOR, "at the start of the warm-up"),
    Setting("PROMPT.WARMUP_EPOCHS", 5, Range(0, whole=True), "in which the learning rate rises from WARMUP_LR"),
    Setting("PROMPT.WEIGHT_DECAY", 1e-4, FACTOR, "of Adam: added to the gradients"),
    Setting("FINETUNE.EPOCHS", 120, COUNT, "of train_clip.py's second stage"),
    Setting("FINETUNE.LABEL_SMOOTHING", 0.1, SHARE, "of the image-to-text loss"),
    Setting("FINETUNE.RESTART_AT_CROSS", False, (True, False),
            "new optimiser and new warm-up at METHOD.CROSS_EPOCH, as RegDB's released code"),

    Setting("TEST.MODE", "", "a mode of the data set, or both",
            "SYSU-MM01: all, indoor; RegDB, LLCM, csv: v2t, t2v; both: every mode; empty: the first"),
    Setting("TEST.PROTOCOL", "python", ("python", "original-1", "original-10"),
            "galleries: drawn by Python's random, or of SYSU-MM01's file with 1 or 10 shots"),
    Setting("TEST.TRIALS", 10, COUNT, "galleries; RegDB has one, all images"),
    Setting("TEST.EVERY", 5, COUNT, "epochs between evaluations during training; the last is always evaluated"),
    Setting("TEST.MIRRORED", False, (True, False), "test the mean of an image's and its mirror image's features"),
    Setting("TEST.BATCH_SIZE", 256, COUNT, "images embedded at once"),

    Setting("LOG.WANDB", False, (True, False), "log to Weights & Biases too, beside the TensorBoard files"),
)
