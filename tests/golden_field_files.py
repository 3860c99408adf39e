"""The golden vectors of the field: in the folder that CCLNET_GOLDEN_FIELD names, by default this project's copy."""
import os
from pathlib import Path

FOLDER = Path(os.environ.get("CCLNET_GOLDEN_FIELD", Path(__file__).parent / "golden_field"))
