"""Augmentation of a batch at 288 x 144, per image and on one core, beside torchvision's one image at a time."""
import numpy as np
import torch

from benchmarks import reference
from benchmarks.bench_memory import bandwidth
from benchmarks.harness import Results, Row, measure
from configs.defaults import load_config
from data.augment import apply, draw, normalise
from data.images import ImageBank
from processor.setup import train_settings

BATCH, HEIGHT, WIDTH = 64, 288, 144


def main():
    """Run and save: on a CPU with one thread, as images per second and core."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (256, HEIGHT, WIDTH, 3), dtype=np.uint8)
    bank, transform = ImageBank(images, device), reference.sysu_transform(HEIGHT, WIDTH)
    positions, rng = np.random.default_rng(1).permutation(256)[:BATCH], np.random.default_rng(2)
    batch = bank.batch(positions)
    policies = train_settings(load_config(), "prepare").augmentation
    bound = BATCH * HEIGHT * WIDTH * 3 * 5 / bandwidth(device)          # a byte read and a float written
    chosen = images[positions]
    slow = measure(lambda: reference.augment(chosen, transform)) / BATCH
    results = Results("augmentation")
    for m, policy in policies.items():
        fast = measure(lambda p=policy: apply(batch, draw(p, BATCH, (HEIGHT, WIDTH), rng)), 15) / BATCH
        results.add(Row(f"SYSU-MM01 {m.name}, per image on one thread", fast, slow, bound / BATCH, ">= 2 x",
                        "the reference is the RGB one"))
    plain = measure(lambda: normalise(batch), 15) / BATCH
    results.add(Row("normalise alone, per image", plain, None, bound / BATCH))
    results.add(Row("gathering the batch, per image", measure(lambda: bank.batch(positions), 15) / BATCH))
    torch.set_num_threads(threads)
    results.save()


if __name__ == "__main__":
    main()
