"""What texts add to the fine-tune: each image is drawn to the text of its pseudo label."""
import math

import torch.nn.functional as F

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

    def losses(self, projections, batch):
        """Compute the losses of a batch: {"i2t_rgb", "i2t_ir"}, scalars.

        Args: projections: Modality -> (B, E); batch: `Batch`, whose positions tell the pseudo labels.
        """
        labels = {m: to_device(self.labels[m][batch.positions[m]], projections[m].device) for m in Modality}
        return {f"i2t_{m.value}": image_to_text(projections[m], self.texts[m], labels[m], self.smoothing)
                for m in Modality}

    def image_texts(self):
        """Return the unit text of each training image: Modality -> (N, E), 0 for those without a label.

        An epoch's clusters are other ones than train_prepare's, whose texts were learned: a cluster's text is the mean
        of its images', in which a label counts as often as the cluster has images of it.
        """
        found = {}
        for m, texts in self.texts.items():
            labels = to_device(self.labels[m], texts.device)
            found[m] = F.normalize(texts.float(), dim=1)[labels] * (labels >= 0)[:, None]
        return found


def describe_scale(image_norm, text_norm, clusters, logit_scale):
    """Say what the mean norms of image projections and texts are, and whether the text losses begin far from RN50's.

    The losses do not normalise, so the product of the norms stands where CLIP's own loss has its logit scale, by which
    cosines are multiplied before the softmax. Below ln(K - 1) a text whose cosine is higher by 1 than those of all
    others has less than half of the softmax: the loss stays near ln K, a guess, whatever is learned. From half of
    CLIP's own scale on (100 in OpenAI's models), the softmax over persons who look much alike is about as sharp as that
    over all of CLIP's captions, and images nearer to another person's text give losses far above ln K.

    Args: clusters: K; logit_scale: that CLIP was trained with. Returns: lines for the log.
    """
    product, least, most = image_norm * text_norm, math.log(max(clusters - 1, 1)), logit_scale / 2
    lines = [f"mean norms: images {image_norm:.2f} x texts {text_norm:.2f} = {product:.1f} scales the text losses' "
             f"cosines (CLIP: {logit_scale:.1f})"]
    if product < least:
        lines.append(f"warning: a scale of {product:.2g} below {least:.2g}: the text losses can hardly leave their "
                     "start; choose weights with longer projections (docs/towers.md)")
    elif product > most:
        lines.append(f"warning: a scale of {product:.3g} above {most:.3g}: the text losses begin far sharper than "
                     "RN50's; use a low OPTIM.LR (docs/towers.md)")
    return lines
