"""Run tools/search.py, where this command lies now: `python -m utils.search` keeps working."""
import runpy

if __name__ == "__main__":
    runpy.run_module("tools.search", run_name="__main__", alter_sys=True)
