"""The old name of RegDB's trials; see tools/experiments.py."""
import sys

if __name__ == "__main__":
    print("error: tools/regdb_trials.py is now tools/experiments.py; train all trials with `python "
          "tools/experiments.py run --config_file configs/regdb.yml --trials 1-10`, and print their table with `python "
          "tools/experiments.py table runs/regdb`", file=sys.stderr)
    sys.exit(2)
