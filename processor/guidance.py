"""What texts add to the fine-tune: each image is drawn to the text of its pseudo label."""
import torch.nn.functional as F

from loss.image_text import image_to_text
from processor.pseudo_labels import cluster_means
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

    def cluster_texts(self, clusters):
        """Average the unit texts of each cluster's images, those of train_prepare's labels.

        An epoch's clusters are other ones than train_prepare's, whose texts were learned: so a cluster's text is a
        mean, in which a label counts as often as the cluster has images of it.

        Args: clusters: Modality -> (N,) of the epoch. Returns: Modality -> (K, E), 0 for a cluster of images without a
            label.
        """
        return {m: cluster_means(self._image_texts(m), clusters[m]) for m in clusters}

    def _image_texts(self, modality):
        """The unit text of each training image, (N, E), 0 for those without a label."""
        labels = to_device(self.labels[modality], self.texts[modality].device)
        return F.normalize(self.texts[modality].float(), dim=1)[labels] * (labels >= 0)[:, None]
