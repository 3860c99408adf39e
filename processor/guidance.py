"""What texts add to the fine-tune: each image is drawn to the text of its pseudo label."""
from loss.image_text import image_to_text
from utils.distributed import ALONE
from utils.modality import Modality
from utils.runtime import to_device


class TextGuidance:
    """Image-to-text losses against the texts of train_prepare's clusters.

    Args:
        texts: Modality -> (K, E) text features; labels: Modality -> (N,) int64 pseudo labels of train_prepare, those of
        -1 are ignored; smoothing: of the labels.
    """

    def __init__(self, texts, labels, smoothing):
        self.texts, self.labels, self.smoothing = texts, labels, smoothing

    def losses(self, projections, positions, processes=ALONE):
        """Compute the losses of a batch: {"loss_i2t_rgb", "loss_i2t_ir"}, scalars.

        Args: projections: Modality -> (B / N, E), this process's share of the batch; positions: Modality -> (B,) of
            all its images in the training set; processes: N of them, whose losses' mean is the loss of the batch.
        """
        losses = {}
        for m in Modality:
            labels = self.labels[m][positions[m]]
            own = to_device(labels[processes.share(len(labels))], projections[m].device)
            whole = None if processes.size == 1 else max(int((labels >= 0).sum()), 1) / processes.size
            losses[f"loss_i2t_{m.value}"] = image_to_text(projections[m], self.texts[m], own, self.smoothing,
                                                         labelled=whole)
        return losses
