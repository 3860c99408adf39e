"""Run tools/download.py, where this command lies now: `python -m utils.download` keeps working."""
import runpy

if __name__ == "__main__":
    runpy.run_module("tools.download", run_name="__main__", alter_sys=True)
