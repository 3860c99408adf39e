"""One epoch of train_prepare.py at SYSU size on a GPU: images of random bytes, clustering included, and a profile."""
import argparse
import sys

import numpy as np
import torch

from benchmarks.bench_train_step import HEIGHT, WIDTH, embedding, rn50, training
from benchmarks.harness import Results, Row, measure
from data.augment import Augmentation, apply, draw
from data.images import ImageBank
from processor.contrast import ContrastSettings, ContrastStage
from processor.features import embed
from processor.pseudo_labels import ClusterSettings, make_pseudo_labels
from utils.modality import Modality
from utils.seeding import numpy_rng

SIZES, PERSONS = {Modality.RGB: 22258, Modality.IR: 11909}, 395
TARGET_SECONDS, EMBED_BATCH = 12, 256


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


def parts(model, banks, settings, report, device):
    """Rows on what an epoch is made of, each timed by itself, beside the least that the tower's arithmetic needs."""
    mode, batch = settings.precision, settings.clusters_per_batch * settings.instances

    def embed_all():
        return {m: embed(model, bank, m, batch_size=EMBED_BATCH, mode=mode) for m, bank in banks.items()}

    features, images = embed_all(), sum(map(len, banks.values()))
    tower = measure(embedding(model, device, mode, EMBED_BATCH, True)) / EMBED_BATCH * images
    yield Row("embedding all images", measure(embed_all, 1), None, tower, note="bound: the tower alone")
    yield Row("clustering both modalities", measure(
        lambda: {m: make_pseudo_labels(features[m], m, settings.cluster) for m in Modality}, 1))
    tower = measure(training(model, device, mode, batch, True)) * report.iterations
    yield Row("training", 2 * batch * report.iterations / report.images_per_second, None, tower,
              note=f"{report.iterations} iterations, {report.images_per_second:.0f} images/s; bound: the optimiser's "
                   "steps alone on images that lie there")
    positions = {m: np.arange(batch) for m in Modality}
    augmentation = measure(lambda: [apply(images := bank.batch(positions[m]), draw(
        settings.augmentation[m], len(images), images.shape[2:], numpy_rng(0, m.value)))
                                    for m, bank in banks.items()])
    yield Row("of it augmentation", augmentation * report.iterations, note="overlaps with the steps on a GPU")


def main():
    """Run two epochs, the second of which counts; save its parts and print where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--images", type=float, default=1.0,
                        help="share of SYSU-MM01's number of images; a small one also runs on a CPU, to try the script")
    parser.add_argument("--instances", type=int, default=16, help="images of each of the 4 clusters in a batch")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and arguments.images == 1:
        print("bench_epoch is skipped: an epoch of 34,167 images takes hours without a GPU, and torch finds none here")
        sys.exit(0)
    model = rn50().to(device).to(memory_format=torch.channels_last)
    banks = {m: ImageBank(random_images(int(n * arguments.images), seed), device)
             for seed, (m, n) in enumerate(SIZES.items())}
    settings = ContrastSettings(
        epochs=2, cluster=ClusterSettings(eps=0.6), swap_epoch=1, precision=arguments.precision,
        embed_batch_size=EMBED_BATCH, instances=arguments.instances,
        augmentation={Modality.RGB: Augmentation(grey=0.5, flip=0.5, pad=10, erase=0.5),
                      Modality.IR: Augmentation(flip=0.5, pad=10, erase=0.5)})
    epochs = ContrastStage(model, banks, settings).epochs()
    next(epochs)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.profiler.profile() as profile:
        report = next(epochs)
    print(profile.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=20,
                                       max_name_column_width=60))
    results = Results("epoch of prepare at SYSU size")
    peak = torch.cuda.max_memory_allocated() / 1e9      # 0 without a GPU
    results.add(Row("whole epoch", report.seconds, target=f"< {TARGET_SECONDS} s",
                    note=f"{arguments.precision}, profiled, peak {peak:.1f} GB of device memory"))
    for row in parts(model, banks, settings, report, device):
        results.add(row)
    if arguments.images == 1:
        results.save()


if __name__ == "__main__":
    main()
