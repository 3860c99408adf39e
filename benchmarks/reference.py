"""The released way of each step, written plainly from the method's description: the slow side of every comparison."""
import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import DBSCAN
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def jaccard_distance(features, k1, k2, nearest):
    """Compute the dense k-reciprocal Jaccard distance (N, N), row by row.

    Args: features: (N, D) float32 array, unit length; nearest: (N, k1) int array, each row's neighbours in order.
    """
    n, half_k = len(features), int(np.around(k1 / 2)) + 1
    full = [_reciprocal(nearest, i, k1) for i in range(n)]
    half = [_reciprocal(nearest, i, half_k) for i in range(n)]
    encoding = np.zeros((n, n), np.float32)
    for i in range(n):
        members = full[i]
        for candidate in full[i]:
            if len(np.intersect1d(half[candidate], full[i])) > 2 / 3 * len(half[candidate]):
                members = np.append(members, half[candidate])
        members = np.unique(members)
        weight = np.exp(2 * (features[members] @ features[i]) - 2)
        encoding[i, members] = weight / weight.sum()
    if k2 > 1:
        encoding = np.stack([encoding[nearest[i, :k2]].mean(0) for i in range(n)])
    holders = [np.flatnonzero(encoding[:, j]) for j in range(n)]
    distance = np.zeros((n, n), np.float32)
    for i in range(n):
        shared = np.zeros(n, np.float32)
        for j in np.flatnonzero(encoding[i]):
            shared[holders[j]] += np.minimum(encoding[i, j], encoding[holders[j], j])
        distance[i] = 1 - shared / (2 - shared)
    return np.maximum(distance, 0)


def _reciprocal(nearest, i, k):
    """Return those of the first k neighbours of row i that have it among their own first k."""
    forward = nearest[i, :k]
    return forward[(nearest[forward, :k] == i).any(1)]


def cluster(features, k1, k2, eps, min_samples, nearest):
    """Run DBSCAN on the dense distance: (N,) labels."""
    distance = jaccard_distance(features, k1, k2, nearest)
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance)


def memory_update(prototypes, x, labels, momentum):
    """Update prototypes (K, D) sequentially, one sample of the batch at a time, in place."""
    for sample, label in zip(x, labels):
        prototypes[label] = momentum * prototypes[label] + (1 - momentum) * sample
        prototypes[label] /= prototypes[label].norm()


def memory_swap(rgb, ir, labels_rgb, labels_ir, scale):
    """Match all prototypes by the Hungarian algorithm, then swap one matched pair at a time, in place."""
    similarity = (rgb @ ir.T).cpu().numpy()
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    for r, i in zip(rows, columns):
        if similarity[r, i] < 0:
            continue
        old = ir[i].clone()
        if r in labels_rgb:
            rgb[r] = scale * rgb[r] + (1 - scale) * old
            rgb[r] /= rgb[r].norm()
        if i in labels_ir:
            ir[i] = scale * old + (1 - scale) * rgb[r]
            ir[i] /= ir[i].norm()


def sysu_transform(height, width):
    """Compose the RGB augmentation of SYSU-MM01 of one image (H, W, 3) uint8, by Pillow."""
    return transforms.Compose([
        Image.fromarray, transforms.RandomGrayscale(0.5), transforms.Pad(10), transforms.RandomCrop((height, width)),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD),
        transforms.RandomErasing(0.5)])


def augment(images, transform):
    """Transform a (B, H, W, 3) uint8 array one image at a time: (B, 3, H, W)."""
    return torch.stack([transform(image) for image in images])
