"""One optimiser step of train_prepare.py and the embedding of images, at the sizes of RN50 and ViT-B/16."""
import argparse
import copy

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, VisionTransformer

from benchmarks.harness import Results, Row, measure, peak_memory, start_method, take_step
from configs.defaults import load_config
from data.batches import Batch
from model.cclnet import CCLNet
from model.towers.clip_resnet import ClipResNet
from model.towers.clip_vit import ClipViT
from processor.optim import image_optimizer
from processor.setup import train_settings
from utils.modality import Modality
from utils.runtime import autocast, compile_parts, gpu_rounding

HEIGHT, WIDTH, CLUSTERS = 288, 144, 500
BACKBONES = {"RN50": None, "ViT-B/16": 16, "ViT-B/16, stride 12": 12}      # name -> stride of the patches
EMBEDDED_BEFORE = 41040             # images that ten separate trials embed: 10 x (3,803 queries + 301 gallery images)
EMBEDDED_ONCE = 3803 + 2800         # queries once, and at most so many images appear in any of the ten galleries


def build(backbone):
    """Build a `CCLNet` of a backbone's size with random weights: the arithmetic is the same. Args: of BACKBONES."""
    torch.manual_seed(0)
    if backbone == "RN50":
        visual = ModifiedResNet([3, 4, 6, 3], output_dim=1024, heads=32, image_size=224, width=64)
        return CCLNet(ClipResNet(visual, HEIGHT, WIDTH))
    visual = VisionTransformer(224, 16, 768, 12, 12, 4.0, output_dim=512, act_layer=QuickGELU)
    return CCLNet(ClipViT(visual, HEIGHT, WIDTH, BACKBONES[backbone]))


def rn50():
    """Build the `CCLNet` of the released recipe's size."""
    return build("RN50")


def training(model, device, precision, size, channels_last, compiled=False):
    """Prepare a training step without swapping: a callable.

    Args: model: is moved and trained; size: images of each modality; compiled: by torch.compile.
    """
    settings = train_settings(load_config(), "prepare")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    if compiled:
        compile_parts(model.tower, torch.device(device))
    optimizer = image_optimizer(model.named_parameters(), settings.lr, settings.weight_decay, settings.bias_lr_factor)
    method = start_method(settings, {m: F.normalize(torch.randn(CLUSTERS, model.feature_dim, device=device), dim=1)
                                     for m in Modality}, 1)
    shape = size, 3, model.tower.height, model.tower.width
    images = {m: torch.randn(shape, device=device).to(memory_format=layout) for m in Modality}
    rows = {m: np.arange(size) for m in Modality}
    batch = Batch(images, {m: rows[m] % settings.clusters_per_batch for m in Modality}, rows, rows)
    return lambda: take_step(model, optimizer, method, batch, precision)


def embedding(model, device, precision, size, channels_last):
    """Prepare the embedding of images of one modality, as `processor.features.embed` does it: a callable.

    Args: model: is moved; size: images.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout).eval()
    shape = size, 3, model.tower.height, model.tower.width
    images = torch.randn(shape, device=device).to(memory_format=layout)

    def run():
        with torch.inference_mode(), gpu_rounding(precision), autocast(precision, device):
            return model.encode(images, Modality.RGB, ("feature",))
    return run


def step_on_the_host(backbone, size):
    """Prepare a training step for `peak_memory`: a callable. Args: size: images of each modality."""
    return training(build(backbone), torch.device("cpu"), "fp32", size, True)


def memory_of(backbone, make, size):
    """Measure the bytes of a training step in fp32: of the GPU all that was allocated, of the host what was added."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        make()
        return torch.cuda.max_memory_allocated()
    return peak_memory(step_on_the_host, backbone, size)


def compare_backbone(backbone, results, others, device, precisions, size, repeats):
    """Add a backbone's rows. The reference of RN50 is fp32 contiguous, that of the others RN50 in the same precision.

    Args: others: the seconds of RN50's rows, filled and read here; size: images of each modality.
    """
    model = build(backbone)
    for name, make, images, target in (("training step", training, 2 * size, ">= 2.3 x"),
                                       ("embedding", embedding, size, "")):
        slow = measure(make(copy.deepcopy(model), device, "fp32", size, False), repeats) if backbone == "RN50" else None
        for precision in precisions:
            step = make(copy.deepcopy(model), device, precision, size, True)
            fast = measure(step, repeats)
            against = slow or others.get((name, precision))
            note = f"{images / fast:.3g} images/s" + (f", reference {images / against:.3g}" if against else "")
            if make is training and precision == "fp32":
                note += f"; {memory_of(backbone, step, size) / 1e9:.2f} GB"
            reference = "fp32 contiguous" if slow else "RN50"
            results.add(Row(f"{name}, {backbone}, {precision} channels-last; reference: {reference}", fast, against,
                            None, target if precision == "bf16" and slow else "", note))
            if backbone == "RN50":
                others[name, precision] = fast
        if name == "embedding" and slow:
            results.add(Row("a SYSU-MM01 evaluation of ten trials, counted", fast / images * EMBEDDED_ONCE,
                            slow / images * EMBEDDED_BEFORE, None, "",
                            f"{EMBEDDED_ONCE} images once instead of {EMBEDDED_BEFORE}; from the rates above"))


def main():
    """Run and save."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = ("fp32", "bf16") if device.type == "cpu" else ("released", "fp32", "tf32", "bf16")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64 if device.type == "cuda" else 4, help="images per modality")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--precisions", nargs="+", choices=known, default=known)
    arguments = parser.parse_args()
    results, others = Results("training step and embedding"), {}
    for backbone in arguments.backbones:
        compare_backbone(backbone, results, others, device, arguments.precisions, arguments.batch, arguments.repeats)
    results.save()


if __name__ == "__main__":
    main()
