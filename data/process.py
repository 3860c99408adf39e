"""Run tools/process.py, where this command lies now: `python data/process.py` keeps working."""
import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "process.py"), run_name="__main__")
