"""Compute, without a GPU, what both stages need on SYSU-MM01: operations, bytes, and the hours that peaks would allow.

    python -m benchmarks.gpu_computed --tflops 790 --terabytes 4.8

Everything runs at full size on fake tensors, which have shapes but no values: nothing is measured.
"""
import argparse

import torch
from torch._subclasses import FakeTensorMode

from benchmarks import roofline
from benchmarks.bench_train_step import embedding, training
from benchmarks.gpu_parts import EPOCHS, FULL, build_model


def work_of(sizes, precision):
    """Count the `Work` of a training step and of the embedding of one image. Args: sizes: `gpu_parts.Sizes`."""
    device, model = torch.device("cpu"), build_model(sizes)     # fake tensors on a GPU have no backward pass
    train, embed = training(model, device, precision, sizes.batch, True), embedding(model, device, precision,
                                                                                    sizes.batch, True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = roofline.count(embed)
        model.train()
        step = roofline.count(train)
    return step, roofline.Work(images.flops / sizes.batch, images.bytes / sizes.batch)


def main():
    """Print the counts and the hours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16", choices=tuple(roofline.PEAK_OF))
    parser.add_argument("--tflops", type=float, required=True, help="the device's peak, 1e12 operations a second")
    parser.add_argument("--terabytes", type=float, required=True, help="its memory's bandwidth, 1e12 bytes a second")
    arguments = parser.parse_args()
    step, image = work_of(FULL, arguments.precision)
    steps, images = max(FULL.images.values()) // FULL.batch + 1, sum(FULL.images.values())
    print(f"computed, not measured: {arguments.precision}, {FULL.height} x {FULL.width}, {EPOCHS} epochs of {steps} "
          f"steps of 2 x {FULL.batch} images and an embedding of {images}")
    print(f"embedding: {image.flops / 1e9:.1f} GFLOP and {image.bytes / 1e6:.0f} MB per image; training step: "
          f"{step.flops / 1e12:.2f} TFLOP and {step.bytes / 1e9:.0f} GB")
    for what, needed, rate in (("arithmetic", "flops", arguments.tflops), ("memory", "bytes", arguments.terabytes)):
        trained, embedded = (EPOCHS * count * getattr(work, needed) / 1e15 for count, work in (
            (steps, step), (images, image)))
        print(f"{what}: {trained:.0f} + {embedded:.0f} 1e15 {needed}, at least "
              f"{(trained + embedded) / rate * 1e3 / 3600:.2f} hours")


if __name__ == "__main__":
    main()
