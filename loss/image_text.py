"""Losses between images and the texts of their clusters. Neither side is normalised, as in the released code."""
import torch.nn.functional as F


def supervised_contrast(anchors, anchor_labels, contrasts, contrast_labels):
    """Compute the supervised contrastive loss (Khosla et al., NeurIPS 2020) at temperature 1.

    Args:
        anchors: (A, E), anchor_labels: (A,); contrasts: (C, E), contrast_labels: (C,). Positives are equal labels;
            every anchor needs at least one among the contrasts.
    Returns:
        The mean over anchors of the mean over positives of -log softmax(anchors @ contrasts.T).
    """
    log_probability = (anchors @ contrasts.T).log_softmax(dim=1)
    positive = (anchor_labels[:, None] == contrast_labels[None]).to(log_probability.dtype)
    return -((positive * log_probability).sum(1) / positive.sum(1)).mean()


def image_to_text(projections, texts, labels, smoothing):
    """Compute the cross entropy with label smoothing of projections @ texts.T; label -1 is ignored.

    Args: projections: (B, E); texts: (K, E), one per pseudo label; labels: (B,); smoothing: share of the target that
        is spread over all texts.
    Returns: the mean over labelled images; 0 where the batch has none.
    """
    total = F.cross_entropy(projections @ texts.T, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)
