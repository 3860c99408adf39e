"""A process that has imported everything and forks a child per run, so that a run starts without seconds of imports.

The children are processes like any other: they can be killed at any moment.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = ("train_prepare", "train_clip", "test")


class Forks:
    """The server, as seen from the tests. Use as a context."""

    def __enter__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
                       "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)
        return self

    def __exit__(self, *_):
        self._server.stdin.close()
        self._server.wait()

    def _ask(self, **question):
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, script, words, output):
        """The process id of a run whose stdout and stderr go to the file `output`."""
        return self._ask(script=script, words=[str(word) for word in words], output=str(output))

    def is_alive(self, pid):
        """Whether a run goes on."""
        return self._ask(alive=pid)

    def wait(self, pid):
        """A run's exit code; minus the signal's number if a signal ended it."""
        return self._ask(wait=pid)

    def run(self, script, words, output):
        """Start a run and wait for its end: its exit code."""
        return self.wait(self.start(script, words, output))


def _start(modules, question):
    pid = os.fork()
    if pid:
        return pid
    import scripts
    output = os.open(question["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os._exit(scripts.call(modules[question["script"]], question["words"]))


def serve():
    """Answer questions, a line of JSON each, until stdin ends."""
    import scripts

    import processor.run.folder
    from model.clip import tokenize
    modules = {name: scripts.load(name) for name in SCRIPTS}
    processor.run.folder.save_report = lambda *arguments: None     # takes longer than a miniature run
    tokenize("warm up")
    ended = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "script" in question:
            answer = _start(modules, question)
        elif "alive" in question:
            pid, status = os.waitpid(question["alive"], os.WNOHANG)
            if pid:
                ended[pid] = os.waitstatus_to_exitcode(status)
            answer = not pid
        else:
            pid = question["wait"]
            answer = ended[pid] if pid in ended else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
