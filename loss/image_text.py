"""Losses between images and the texts of their clusters. Neither side is normalised, as in the released code."""
import torch.nn.functional as F


def supervised_contrast(anchors, anchor_labels, contrasts, contrast_labels, temperature=1.0):
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020): the positives of an anchor are equal labels.

    Args:
        anchors: (A, E), anchor_labels: (A,); contrasts: (C, E), contrast_labels: (C,).
            Every anchor needs at least one positive among the contrasts.
    Returns:
        The mean over anchors of the mean over positives of -log softmax(anchors @ contrasts.T / temperature).
    """
    log_probability = (anchors @ contrasts.T / temperature).log_softmax(dim=1)
    positive = (anchor_labels[:, None] == contrast_labels[None]).to(log_probability.dtype)
    return -((positive * log_probability).sum(1) / positive.sum(1)).mean()


def image_to_text(projections, text_features, labels, smoothing=0.1):
    """Cross entropy with label smoothing of projections @ text_features.T; label -1 is ignored.

    Args: projections: (B, E); text_features: (K, E), one per pseudo label; labels: (B,).
    Returns: the mean over labelled images; 0 where the batch has none.
    """
    logits = projections @ text_features.T
    if not (labels >= 0).any():
        return logits.sum() * 0
    return F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing)
