"""A step of the memories of both modalities with swapping: update, Hungarian matching, swap."""
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from benchmarks import reference
from benchmarks.harness import Results, Row, measure, start_method
from configs.defaults import load_config
from data.batches import Batch
from processor.setup import train_settings
from utils.modality import Modality

CLUSTERS, DIM, BATCH = {Modality.RGB: 600, Modality.IR: 450}, 2048, 64


def draw(clusters_rgb, clusters_ir, dim, seed=0):
    """Draw prototypes of two modalities that share persons: unit rows, (clusters_rgb, dim) and (clusters_ir, dim)."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(max(clusters_rgb, clusters_ir), dim, generator=generator)
    return tuple(F.normalize(base[:k] + torch.randn(k, dim, generator=generator), dim=1)
                 for k in (clusters_rgb, clusters_ir))


def batch(clusters, seed, per_cluster=16):
    """Draw a P x K batch: unit rows (BATCH, DIM), and their (BATCH,) labels, an array, equal ones side by side."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(clusters, generator=generator)[:BATCH // per_cluster].repeat_interleave(per_cluster)
    return F.normalize(torch.randn(BATCH, DIM, generator=generator), dim=1), labels.numpy()


def steps(device, with_swap):
    """Prepare one step of ours and of the reference: two callables, which a first call has shown to agree."""
    settings = train_settings(load_config(), "prepare")
    start = [p.to(device) for p in draw(*CLUSTERS.values(), DIM)]
    batches = {m: batch(k, seed) for seed, (m, k) in enumerate(CLUSTERS.items(), 1)}
    features, labels = {m: x.to(device) for m, (x, _) in batches.items()}, {m: y for m, (_, y) in batches.items()}
    method = start_method(settings, dict(zip(Modality, start)), settings.of_method["cross_epoch"] if with_swap else 1)
    numbers, images = method.settings, Batch({}, labels, {}, {})
    plain = [p.clone() for p in start]

    def ours():
        method.update(features, images)
        method.prototypes()         # a swap that was put off is done

    def released():
        for m, prototypes in zip(Modality, plain):
            reference.memory_update(prototypes, features[m], labels[m], numbers.momentum)
        if with_swap:
            reference.memory_swap(*plain, *labels.values(), numbers.swap_scale)

    ours()
    released()
    for m, prototypes in zip(Modality, plain):
        torch.testing.assert_close(method.memories[m].prototypes, prototypes)
    return ours, released


def bandwidth(device):
    """Measure the bytes per second of a copy that does not fit the caches."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure(lambda: target.copy_(source))


def main():
    """Run and save."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results, (rgb, ir) = Results("memory"), CLUSTERS.values()
    moved = 4 * DIM * (rgb + ir + 4 * 4 * BATCH)       # both memories once, samples and prototypes read and written
    rate = bandwidth(device)
    for with_swap in (True, False):
        times = [measure(step, 21) for step in steps(device, with_swap)]
        results.add(Row(f"step {rgb} x {ir}, {BATCH} + {BATCH} samples, {'with' if with_swap else 'without'} swap",
                        *times, moved / rate, note="bound: bytes over bandwidth"))
    rgb, ir = (p.to(device) for p in draw(rgb, ir, DIM))
    similarity = (rgb @ ir.T).cpu().numpy()
    results.compare("of it all inner products", lambda: rgb @ ir.T, repeats=21)
    results.compare("of it the assignment (host)", lambda: linear_sum_assignment(similarity, maximize=True), repeats=21)
    results.save()


if __name__ == "__main__":
    main()
