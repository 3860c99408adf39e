"""Run tools/download.py, where this command lies now: `python -m utils.download` keeps working."""
import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "download.py"), run_name="__main__")
