"""The two kinds of images."""
from enum import Enum


class Modality(str, Enum):
    """Which sensor took an image. Equal to its word, "rgb" or "ir", which stands for it as an argument or a key.

    Example:
        >>> {Modality.RGB: 1}["rgb"], Modality("ir").other
        (1, <Modality.RGB: 'rgb'>)
    """

    RGB = "rgb"
    IR = "ir"

    @property
    def other(self):
        """The modality that is searched with this one."""
        return Modality.IR if self is Modality.RGB else Modality.RGB
