"""One epoch of train_prepare.py at SYSU size on a GPU: images of random bytes, clustering included, and a profile."""
import argparse
import sys

import numpy as np
import torch

from benchmarks.bench_train_step import HEIGHT, WIDTH, rn50
from benchmarks.harness import Results, Row
from data.augment import Augmentation
from data.images import ImageBank
from processor.contrast import ContrastSettings, ContrastStage
from processor.pseudo_labels import ClusterSettings
from utils.modality import Modality

SIZES, PERSONS = {Modality.RGB: 22258, Modality.IR: 11909}, 395
TARGET_SECONDS = 12


def random_images(n, seed):
    """(N, H, W, 3) uint8: a person is one coarse random pattern, an image is that with fine noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (PERSONS, HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    person = rng.integers(0, PERSONS, n)
    images = rng.integers(0, 56, (n, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for start in range(0, n, 1024):
        part = slice(start, start + 1024)
        images[part] += coarse[person[part]].repeat(16, axis=1).repeat(16, axis=2)
    return images


def main():
    """Run two epochs, the second of which counts; save its parts and print where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--images", type=float, default=1.0, help="share of SYSU-MM01's number of images")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_epoch is skipped: an epoch of 34,167 images takes hours without a GPU, and torch finds none here")
        sys.exit(0)
    device = torch.device("cuda")
    model = rn50().to(device).to(memory_format=torch.channels_last)
    banks = {m: ImageBank(random_images(int(n * arguments.images), seed), device)
             for seed, (m, n) in enumerate(SIZES.items())}
    settings = ContrastSettings(
        epochs=2, cluster=ClusterSettings(eps=0.6), swap_epoch=1, precision=arguments.precision, embed_batch_size=256,
        augmentation={Modality.RGB: Augmentation(grey=0.5, flip=0.5, pad=10, erase=0.5),
                      Modality.IR: Augmentation(flip=0.5, pad=10, erase=0.5)})
    epochs = ContrastStage(model, banks, settings).epochs()
    next(epochs)
    torch.cuda.reset_peak_memory_stats()
    with torch.profiler.profile() as profile:
        report = next(epochs)
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=20, max_name_column_width=60))
    training = report.iterations * 2 * settings.clusters_per_batch * settings.instances / report.images_per_second
    note = f"{report.iterations} iterations, {arguments.precision}, profiled"
    results = Results("epoch of prepare at SYSU size")
    results.add(Row("whole epoch", report.seconds, target=f"< {TARGET_SECONDS} s", note=note))
    results.add(Row("of it training", training, note=f"{report.images_per_second:.0f} images/s"))
    results.add(Row("of it embedding and clustering", report.seconds - training,
                    note=f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of device memory"))
    results.save()


if __name__ == "__main__":
    main()
