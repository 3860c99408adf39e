"""One optimiser step of train_prepare.py and the embedding of images, at RN50's size, against plain fp32 contiguous."""
import argparse
import copy

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet

from benchmarks.harness import Results, Row, measure
from configs.defaults import load_config
from model.cclnet import CCLNet
from processor.setup import train_settings
from processor.train import Batch, train_step
from utils.modality import Modality
from utils.optim import image_optimizer
from utils.runtime import autocast, compile_parts, gpu_rounding

HEIGHT, WIDTH, CLUSTERS = 288, 144, 500
EMBEDDED_BEFORE = 41040             # images that ten separate trials embed: 10 x (3,803 queries + 301 gallery images)
EMBEDDED_ONCE = 3803 + 2800         # queries once, and at most so many images appear in any of the ten galleries


def rn50():
    """Build a `CCLNet` of RN50's size with random weights: the arithmetic is the same."""
    torch.manual_seed(0)
    return CCLNet(ModifiedResNet([3, 4, 6, 3], output_dim=1024, heads=32, image_size=224, width=64), HEIGHT, WIDTH)


def training(model, device, precision, size, channels_last, backend=None):
    """Prepare a training step without swapping: a callable.

    Args: model: is moved and trained; size: images of each modality; backend: of torch.compile, None: not compiled.
    """
    settings = train_settings(load_config(), 120)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    if backend:
        compile_parts(model.tower, torch.device(device), backend)
    optimizer = image_optimizer(model.named_parameters(), settings.lr, settings.weight_decay, settings.bias_lr_factor)
    memory = settings.new_memory({m: torch.randn(CLUSTERS, model.feature_dim, device=device) for m in Modality}, 1)
    shape = size, 3, model.tower.height, model.tower.width
    images = {m: torch.randn(shape, device=device).to(memory_format=layout) for m in Modality}
    batch = Batch(images, {m: np.arange(size) % settings.clusters_per_batch for m in Modality},
                  {m: np.arange(size) for m in Modality})
    return lambda: train_step(model, optimizer, memory, batch, None, precision)


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


def main():
    """Run and save."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64 if device.type == "cuda" else 4, help="images per modality")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    size, repeats, model = arguments.batch, arguments.repeats, rn50()
    precisions = ("fp32", "bf16") if device.type == "cpu" else ("released", "fp32", "tf32", "bf16")
    results = Results("training step and embedding")
    for name, make, images, target in (("training step", training, 2 * size, ">= 2.3 x"),
                                       ("embedding", embedding, size, "")):
        slow = measure(make(copy.deepcopy(model), device, "fp32", size, False), repeats)
        for precision in precisions:
            fast = measure(make(copy.deepcopy(model), device, precision, size, True), repeats)
            results.add(Row(f"{name}, {precision} channels-last; reference: fp32 contiguous", fast, slow, None,
                            target if precision == "bf16" else "",
                            f"{images / fast:.3g} images/s, reference {images / slow:.3g}"))
        if name == "embedding":
            results.add(Row("a SYSU-MM01 evaluation of ten trials, counted", fast / images * EMBEDDED_ONCE,
                            slow / images * EMBEDDED_BEFORE, None, "",
                            f"{EMBEDDED_ONCE} images once instead of {EMBEDDED_BEFORE}; from the rates above"))
    if device.type == "cuda":
        print(f"peak device memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    results.save()


if __name__ == "__main__":
    main()
