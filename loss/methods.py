"""The methods by name (MEMORY.METHOD): what is done with the links between clusters of the two modalities."""
from loss.association import Links
from loss.cclnet import CCLNetMemory
from loss.cross_memory import CrossMemory
from loss.pgm import PGM
from loss.rpnr import RPNR
from utils.modality import Modality

METHODS = {"cclnet": CCLNetMemory, "pgm": PGM, "rpnr": RPNR, "none": CrossMemory}


def restore(state, epoch, settings, labels, device):
    """Make the memory of an epoch again from its state.

    Args: state: of its `state_dict`; epoch, settings, labels: as `CrossMemory`. Returns: a `CrossMemory`.
    """
    start = {m: state[m.value]["prototypes"].to(device) for m in Modality}      # of the right size, replaced below
    links = Links(*(side.cpu().numpy() for side in state["links"])) if "links" in state else None
    memory = METHODS[settings.method](start, epoch, settings, links, labels)
    memory.load_state_dict(state)
    return memory
