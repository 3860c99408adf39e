"""A tool that starts the scripts: what stops it reaches them, and it waits for them."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.processes import run_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import signal, sys, time
caught = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: caught.append(number))
open(sys.argv[1], "w").write("ready")
while not caught:
    time.sleep(0.01)
time.sleep(0.5)                     # as a run that saves its state
open(sys.argv[1], "w").write(f"saved {len(caught)}")
sys.exit(128 + caught[0])
"""
TOOL = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from utils.processes import run_script
sys.exit(run_script(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_tool_reaches_the_script(tmp_path, number):
    said = tmp_path / "said"
    words = [sys.executable, "-c", TOOL, sys.executable, "-c", SCRIPT, str(said)]
    tool = subprocess.Popen(words, start_new_session=True)
    while not said.exists() or said.read_text() != "ready":
        time.sleep(0.01)
    os.killpg(tool.pid, number)         # as Ctrl-C in a terminal: the whole group
    assert tool.wait(timeout=30) == 128 + number
    assert said.read_text() == "saved 1"        # once: a second Ctrl-C would stop it without saving


def test_exit_codes_and_handlers(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    assert run_script([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert run_script([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137
    assert signal.getsignal(signal.SIGTERM) is before
