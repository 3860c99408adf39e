"""Losses between images and the texts of their clusters. Neither side is normalised, as in the released code."""
import torch.nn.functional as F


def supervised_contrast(anchors, anchor_labels, contrasts, contrast_labels):
    """Compute the supervised contrastive loss of Khosla et al. (NeurIPS 2020) between images and texts.

    Each row of one side, an anchor, is compared with all rows of the other; those of its label are its positives.

    Args: anchors: (A, E), contrasts: (C, E) float tensors; anchor_labels: (A,), contrast_labels: (C,) int64 tensors.
    Returns: a scalar tensor, the mean over anchors of the mean over positives of -log softmax(anchors @ contrasts.T);
        NaN if an anchor has no positive.

    Example:
        >>> images, texts = 10 * torch.eye(2), torch.eye(2)
        >>> labels = torch.tensor([0, 1])
        >>> supervised_contrast(images, labels, texts, labels)      # log(1 + exp(-10))
        tensor(4.5418e-05)
    """
    log_probability = (anchors @ contrasts.T).log_softmax(dim=1)
    positive = (anchor_labels[:, None] == contrast_labels[None]).to(log_probability.dtype)
    return -((positive * log_probability).sum(1) / positive.sum(1)).mean()


def image_to_text(projections, texts, labels, smoothing):
    """Compute the cross entropy with label smoothing of projections @ texts.T; label -1 is ignored.

    Args: projections: (B, E) float tensor; texts: (K, E) float tensor, one per pseudo label; labels: (B,) int64 tensor;
        smoothing: share of the target that is spread over all texts (CCLNet: 0.1).
    Returns: a scalar tensor, the mean over labelled images; 0 if the batch has none.

    Example:
        >>> image_to_text(torch.zeros(3, 4), torch.ones(2, 4), torch.tensor([0, 1, -1]), 0.1)    # a guess: log(2)
        tensor(0.6931)
    """
    total = F.cross_entropy(projections @ texts.T, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)
