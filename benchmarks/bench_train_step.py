"""One optimiser step of train_prepare.py and the embedding of images, at the sizes of RN50 and ViT-B/16."""
import argparse
import copy
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, VisionTransformer

from benchmarks.harness import Results, Row, measure, start_method
from configs.defaults import load_config
from data.batches import Batch
from model.batch_norm import folded
from model.cclnet import CCLNet
from model.replay import ReplayedNetwork
from model.towers.clip_resnet import ClipResNet
from model.towers.clip_vit import ClipViT
from processor.setup import train_settings
from processor.train import TrainState, train_step
from utils.modality import Modality
from utils.runtime import autocast, compile_parts, gpu_rounding

HEIGHT, WIDTH, CLUSTERS = 288, 144, 500
BACKBONES = {"RN50": None, "ViT-B/16": 16, "ViT-B/16, stride 12": 12}      # name -> stride of the patches


def resnet(layers=(3, 4, 6, 3), channels=64, height=HEIGHT, width=WIDTH):
    """Build a `CCLNet` with random weights, by default of the released recipe's size."""
    visual = ModifiedResNet(list(layers), output_dim=16 * channels, heads=channels // 2, image_size=224, width=channels)
    return CCLNet(ClipResNet(visual, height, width))


def build(backbone):
    """Build a `CCLNet` of a backbone's size with random weights. Args: of BACKBONES."""
    torch.manual_seed(0)
    if backbone == "RN50":
        return resnet()
    visual = VisionTransformer(224, 16, 768, 12, 12, 4.0, output_dim=512, act_layer=QuickGELU)
    return CCLNet(ClipViT(visual, HEIGHT, WIDTH, BACKBONES[backbone]))


def random_images(model, device, size, layout):
    """Draw images (size, 3, H, W) of the model's size."""
    return torch.randn(size, 3, model.tower.height, model.tower.width, device=device).to(memory_format=layout)


def training(model, device, precision, size, layout=torch.channels_last, compiled=False,
             replayed=False):
    """Prepare a training step without swapping: a callable.

    Args: model: is copied; size: images of each modality; layout: memory format; compiled: by torch.compile;
        replayed: passes as CUDA graphs.
    """
    settings = train_settings(load_config(), "prepare")
    model = copy.deepcopy(model).to(device, memory_format=layout).train()
    if compiled:
        compile_parts(model.tower, torch.device(device))
    optimizer = TrainState(model, settings).optimizer
    method = start_method(settings, {m: F.normalize(torch.randn(CLUSTERS, model.feature_dim, device=device), dim=1)
                                     for m in Modality}, 1)
    rows = {m: np.arange(size) for m in Modality}
    batch = Batch({m: random_images(model, device, size, layout) for m in Modality},
                  {m: rows[m] % settings.clusters_per_batch for m in Modality}, rows, rows)
    network = ReplayedNetwork(model, ("feature",)) if replayed else model
    return lambda: train_step(network, optimizer, method, batch, None, precision)


def embedding(model, device, precision, size, layout=torch.channels_last):
    """Prepare the embedding of images of one modality, as `processor.features.embed` does it: a callable.

    Args: as `training`; size: images.
    """
    model = folded(model) if torch.device(device).type == "cuda" else copy.deepcopy(model).eval()
    model = model.to(device, memory_format=layout)
    images = random_images(model, device, size, layout)

    def run():
        with torch.inference_mode(), gpu_rounding(precision), autocast(precision, device):
            return model.encode(images, Modality.RGB, ("feature",))
    return run


def main():
    """Run and save."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = ("fp32", "bf16") if device.type == "cpu" else ("released", "fp32", "tf32", "bf16")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64 if device.type == "cuda" else 4, help="images per modality")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--precisions", nargs="+", choices=known, default=known)
    options, results = parser.parse_args(), Results("training step and embedding")
    for backbone, (name, make, images) in product(options.backbones, (
            ("training step", training, 2 * options.batch), ("embedding", embedding, options.batch))):
        for precision in options.precisions:
            seconds = measure(make(build(backbone), device, precision, options.batch), options.repeats)
            results.add(Row(f"{name}, {backbone}, {precision}", seconds, note=f"{images / seconds:.3g} images/s"))
    results.save()


if __name__ == "__main__":
    main()
