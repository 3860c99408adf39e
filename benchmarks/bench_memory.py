"""A step of the memories of both modalities with swapping, beside the released way: one sample, one pair at a time."""
import torch
import torch.nn.functional as F

from benchmarks.harness import Results, Row, measure, start_method
from configs.defaults import load_config
from data.batches import Batch
from loss.links import hungarian
from processor.setup import train_settings
from utils.modality import Modality

CLUSTERS, DIM, BATCH = {Modality.RGB: 600, Modality.IR: 450}, 2048, 64
PER_CLUSTER = 16        # images of each cluster in a batch


def draw(clusters, dim):
    """Draw prototypes of two modalities that share persons: Modality -> (K, dim) unit rows. Args: Modality -> K."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(max(clusters.values()), dim, generator=generator)
    return {m: F.normalize(base[:k] + torch.randn(k, dim, generator=generator), dim=1) for m, k in clusters.items()}


def released_update(prototypes, x, labels, momentum):
    """Move prototypes (K, D) to the samples of a batch, one at a time, in place."""
    for sample, label in zip(x, labels):
        prototypes[label] = momentum * prototypes[label] + (1 - momentum) * sample
        prototypes[label] /= prototypes[label].norm()


def released_swap(rgb, ir, labels_rgb, labels_ir, scale):
    """Link all prototypes, then swap one linked pair at a time, in place."""
    for r, i in enumerate(hungarian((rgb @ ir.T).cpu().numpy()).rgb_to_ir):
        old = ir[i].clone()
        if i >= 0 and r in labels_rgb:
            rgb[r] = scale * rgb[r] + (1 - scale) * old
            rgb[r] /= rgb[r].norm()
        if i >= 0 and i in labels_ir:
            ir[i] = scale * old + (1 - scale) * rgb[r]
            ir[i] /= ir[i].norm()


def steps(device, clusters, dim, with_swap):
    """Prepare one step of ours and of the reference.

    Args: clusters: Modality -> number; dim: of the features.
    Returns: two callables, and one that gives the prototypes of both, Modality -> (K, dim) each.
    """
    settings, generator = train_settings(load_config(), "prepare"), torch.Generator().manual_seed(1)
    start = {m: rows.to(device) for m, rows in draw(clusters, dim).items()}
    labels = {m: torch.randperm(k, generator=generator)[:BATCH // PER_CLUSTER].repeat_interleave(PER_CLUSTER).numpy()
              for m, k in clusters.items()}
    features = {m: F.normalize(torch.randn(len(y), dim, generator=generator), dim=1).to(device)
                for m, y in labels.items()}
    method = start_method(settings, start, settings.of_method["cross_epoch"] if with_swap else 1)
    plain, numbers = {m: rows.clone() for m, rows in start.items()}, method.settings

    def ours():
        method.update(features, Batch({}, labels, {}, {}))
        method.prototypes()         # a swap that was put off is done

    def released():
        for m, prototypes in plain.items():
            released_update(prototypes, features[m], labels[m], numbers.momentum)
        if with_swap:
            released_swap(*plain.values(), *labels.values(), numbers.swap_scale)

    return ours, released, lambda: ({m: method.memories[m.value].prototypes for m in Modality}, plain)


def main():
    """Run and save; a first step shows that both ways agree."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results, (rgb, ir) = Results("memory"), CLUSTERS.values()
    for with_swap in (True, False):
        ours, released, prototypes = steps(device, CLUSTERS, DIM, with_swap)
        ours()
        released()
        torch.testing.assert_close(*prototypes())
        results.add(Row(f"step {rgb} x {ir}, {BATCH} + {BATCH} samples, {'with' if with_swap else 'without'} swap",
                        measure(ours, 21), measure(released, 21)))
    results.save()


if __name__ == "__main__":
    main()
