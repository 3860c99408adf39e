"""The cluster memory's step with swapping: update of both modalities, Hungarian matching, swap."""
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from benchmarks import reference
from benchmarks.harness import Results, Row, measure
from loss.cluster_memory import ClusterMemory, PrototypeSimilarity, swap

RGB, IR, DIM, BATCH = 600, 450, 2048, 64


def draw(clusters_rgb, clusters_ir, dim, seed=0):
    """Prototypes of two modalities that share persons: unit rows, (clusters_rgb, dim) and (clusters_ir, dim)."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(max(clusters_rgb, clusters_ir), dim, generator=generator)
    return tuple(F.normalize(base[:k] + torch.randn(k, dim, generator=generator), dim=1)
                 for k in (clusters_rgb, clusters_ir))


def batch(clusters, seed, per_cluster=16):
    """(x, labels) of a P x K batch: unit rows (64, DIM), and (64,) labels side by side."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(clusters, generator=generator)[:BATCH // per_cluster].repeat_interleave(per_cluster)
    return F.normalize(torch.randn(BATCH, DIM, generator=generator), dim=1), labels


def steps(device):
    """Callables of one step: {"ours with swap", "ours", "reference with swap", "reference"}."""
    start = [p.to(device) for p in draw(RGB, IR, DIM)]
    batches = [(x.to(device), y) for x, y in (batch(RGB, 1), batch(IR, 2))]
    memories, plain = [ClusterMemory(p) for p in start], [p.clone() for p in start]
    similarity = PrototypeSimilarity(*memories)        # once per epoch

    def ours(with_swap):
        for memory, (x, y) in zip(memories, batches):
            memory.update(x, y)
        if with_swap:
            swap(*memories, batches[0][1], batches[1][1], similarity=similarity)

    def released(with_swap):
        for prototypes, (x, y) in zip(plain, batches):
            reference.memory_update(prototypes, x, y)
        if with_swap:
            reference.memory_swap(*plain, batches[0][1], batches[1][1])

    ours(True)
    released(True)
    for memory, prototypes in zip(memories, plain):
        torch.testing.assert_close(memory.prototypes, prototypes)
    return ours, released


def bandwidth(device):
    """Bytes per second of a copy that does not fit the caches."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure(lambda: target.copy_(source))


def solvers(results):
    """scipy's assignment against lapx where it is installed."""
    try:
        import lap
    except ImportError:
        lap = None
    for k in (600, 2000, 10000):
        rgb, ir = draw(k, k * 3 // 4, 256)
        similarity = (rgb @ ir.T).numpy()
        repeats = 3 if k < 10000 else 1

        def jonker(cost=similarity):
            return lap.lapjv(1 - cost, extend_cost=True)

        results.compare(f"assignment {k} x {k * 3 // 4}: scipy, lapx as reference",
                        lambda s=similarity: linear_sum_assignment(s, maximize=True), jonker if lap else None,
                        repeats=repeats, note="" if lap else "lapx is not installed")


def main():
    """Run and save."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results, (ours, released) = Results("memory"), steps(device)
    moved = 4 * DIM * (RGB + IR + 4 * 4 * BATCH)       # both memories once, samples and prototypes read and written
    rate = bandwidth(device)
    for with_swap, target in ((True, ">= 4 x"), (False, "")):
        name = "with" if with_swap else "without"
        times = [measure(lambda f=f, w=with_swap: f(w), 21) for f in (ours, released)]
        results.add(Row(f"step {RGB} x {IR}, {BATCH} + {BATCH} samples, {name} swap", *times, moved / rate, target,
                        "bound: bytes over bandwidth"))
    rgb, ir = (p.to(device) for p in draw(RGB, IR, DIM))
    similarity = (rgb @ ir.T).cpu().numpy()
    results.compare("all inner products, which ours computes once per epoch", lambda: rgb @ ir.T, repeats=21)
    results.compare("of it the assignment (host)", lambda: linear_sum_assignment(similarity, maximize=True), repeats=21)
    solvers(results)
    results.save()


if __name__ == "__main__":
    main()
