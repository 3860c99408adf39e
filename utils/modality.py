"""The two kinds of images."""
from enum import Enum


class Modality(Enum):
    """Which sensor took an image; `Modality("rgb")` and `Modality("ir")` work too."""

    RGB = "rgb"
    IR = "ir"

    @property
    def other(self):
        """The modality that is searched with this one."""
        return Modality.IR if self is Modality.RGB else Modality.RGB
