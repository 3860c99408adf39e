"""What texts add to the fine-tune: each image is drawn to the text of its pseudo label."""
from loss.image_text import image_to_text
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

    def losses(self, projections, positions):
        """Compute the losses of a batch: {"loss_i2t_rgb", "loss_i2t_ir"}, scalars.

        Args: projections: Modality -> (B, E); positions: Modality -> (B,) of the images in the training set.
        """
        return {f"loss_i2t_{m.value}": image_to_text(
            projections[m], self.texts[m], to_device(self.labels[m][positions[m]], projections[m].device),
            self.smoothing) for m in Modality}
