"""One optimiser step of train_prepare.py and the embedding of images, at RN50's size, against plain fp32 contiguous."""
import argparse
import copy

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet

from benchmarks.harness import Results, Row, measure
from loss.cluster_memory import ClusterMemory
from model.cclnet import CCLNet
from processor.contrast import contrast_losses
from utils.modality import Modality
from utils.optim import image_optimizer
from utils.runtime import precision

HEIGHT, WIDTH, CLUSTERS = 288, 144, 500
EMBEDDED_BEFORE = 41040             # images that ten separate trials embed: 10 x (3,803 queries + 301 gallery images)
EMBEDDED_ONCE = 3803 + 2800         # queries once, and at most so many images appear in any of the ten galleries


def rn50():
    """A `CCLNet` of RN50's size with random weights: the arithmetic is the same."""
    torch.manual_seed(0)
    return CCLNet(ModifiedResNet([3, 4, 6, 3], output_dim=1024, heads=32, image_size=224, width=64), HEIGHT, WIDTH)


def training(model, device, mode, batch, channels_last):
    """A callable that takes one training step with batch images of each modality."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(device).to(memory_format=layout).train()
    optimizer = image_optimizer(model.named_parameters())
    memories = {m: ClusterMemory(torch.randn(CLUSTERS, model.feature_dim, device=device)) for m in Modality}
    images = {m: torch.randn(batch, 3, HEIGHT, WIDTH, device=device).to(memory_format=layout) for m in Modality}
    labels = {m: torch.arange(batch) % 4 for m in Modality}

    def step():
        with precision(mode, device):
            losses, features = contrast_losses(model, memories, images, labels)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()
        for m in Modality:
            memories[m].update(features[m], labels[m])
    return step


def embedding(model, device, mode, batch, channels_last):
    """A callable that embeds batch images of one modality."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(device).to(memory_format=layout).eval()
    images = torch.randn(batch, 3, HEIGHT, WIDTH, device=device).to(memory_format=layout)

    def run():
        with torch.inference_mode(), precision(mode, device):
            return F.normalize(model.feature(model.feature_map(images, Modality.RGB)).float(), dim=1)
    return run


def main():
    """Run and save."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64 if device.type == "cuda" else 4, help="images per modality")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    batch, repeats, model = arguments.batch, arguments.repeats, rn50()
    modes = ("fp32", "bf16") if device.type == "cpu" else ("fp32", "tf32", "bf16")
    results = Results("training step and embedding")
    for name, make, images, target in (("training step", training, 2 * batch, ">= 2.3 x"),
                                       ("embedding", embedding, batch, "")):
        slow = measure(make(model, device, "fp32", batch, False), repeats)
        for mode in modes:
            fast = measure(make(model, device, mode, batch, True), repeats)
            results.add(Row(f"{name}, {mode} channels-last; reference: fp32 contiguous", fast, slow, None,
                            target if mode == "bf16" else "",
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
