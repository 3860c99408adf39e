"""Runs tools/search.py: `python -m utils.search` is its former name."""
import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "search.py"), run_name="__main__")
