"""What texts add to the fine-tune: each image is drawn to the text of its pseudo label."""
import math

import numpy as np
import torch
import torch.nn.functional as F

from data.pseudo_labels import cluster_means
from loss.image_text import image_to_text
from model.clip import tokenize
from model.prompt import TEMPLATES
from processor.features import embed
from utils.distributed import ALONE
from utils.modality import Modality
from utils.runtime import to_device

MEASURED_IMAGES = 256       # of each modality, for the norms at a run's start


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


@torch.no_grad()
def scale_lines(model, text, images, clusters, logit_scale, *, batch_size, precision, processes=ALONE):
    """Measure the norms of image projections and text features before training: lines for the log.

    Args:
        model: the `CCLNet` before training; text: `TextTower`; images: Modality -> `ImageBank`; clusters: K of the
        larger modality; logit_scale: that CLIP was trained with; batch_size, precision, processes: of the embedding.
    """
    image_norms, text_norms = [], []
    for m in Modality:
        some = np.unique(np.linspace(0, len(images[m]) - 1, min(len(images[m]), MEASURED_IMAGES)).astype(np.int64))
        projections = embed(model, images[m], m, ("projection",), some, batch_size=batch_size, precision=precision,
                            processes=processes)
        image_norms.append(float(projections["projection"].norm(dim=1).mean()))
        tokens = tokenize(TEMPLATES[m], text.context_length)
        tokens = tokens[:, :int(tokens.argmax()) + 1].to(text.positional_embedding.device)
        text_norms.append(float(text(text.token_embedding(tokens)).norm()))
    return describe_scale(sum(image_norms) / 2, sum(text_norms) / 2, clusters, logit_scale)


def describe_scale(image_norm, text_norm, clusters, logit_scale):
    """Say what the norms are, and whether the text losses begin far from what they do for RN50: lines for the log.

    The losses do not normalise, so the product of the norms stands where CLIP's own loss has its logit scale, by which
    cosines are multiplied before the softmax. Below ln(K - 1) a text whose cosine is higher by 1 than those of all
    others has less than half of the softmax: the loss stays near ln K, a guess, whatever is learned. From half of
    CLIP's own scale on (100 in OpenAI's models), the softmax over persons who look much alike is about as sharp as that
    over all of CLIP's captions, and images nearer to another person's text give losses far above ln K.
    """
    product, least, most = image_norm * text_norm, math.log(max(clusters - 1, 1)), logit_scale / 2
    lines = [f"mean norms: image projections {image_norm:.2f}, text features {text_norm:.2f}; product {product:.1f} "
             f"scales the text losses' cosines (CLIP: {logit_scale:.1f})"]
    if product < least:
        lines.append(f"warning: a scale of {product:.2g} below {least:.2g}: the text losses can hardly leave their "
                     "start; choose weights with longer projections (docs/backbones.md)")
    elif product > most:
        lines.append(f"warning: a scale of {product:.3g} above {most:.3g}: the text losses begin far sharper than "
                     "RN50's; use a low OPTIM.LR (docs/backbones.md)")
    return lines
