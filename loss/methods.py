"""The methods by name (METHOD.NAME). One of your own is entered here, or by a script that then calls `main`."""
from loss.cclnet import CCLNet
from loss.none import NoLinks
from loss.nulc import NULC
from loss.pgm import PGM
from loss.rpnr import RPNR
from loss.sdcl import SDCL
from loss.unify import Unify

METHODS = {"cclnet": CCLNet, "pgm": PGM, "rpnr": RPNR, "nulc": NULC, "sdcl": SDCL, "unify": Unify, "none": NoLinks}
