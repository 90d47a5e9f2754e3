"""Real trainers without the two seconds of loading torch: a server that has loaded it forks one for each start.

What is forked runs `kssm.cli.main` as the command does: lock, journal, loop, saves. Only the server signals it, so that
a signal never reaches a recycled PID.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SERVER = """
import json, os, signal, sys
import torch, torch._dynamo, torch.optim
from kssm import cli, loop, models, train, use
torch.set_num_threads(1)

def child(order):
    os.setsid()
    out = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 70
    try:
        code = cli.main(order["words"])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)

pid = 0
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "start":
        pid = os.fork()
        if not pid:
            child(order)
        print(pid, flush=True)
        continue
    if order["do"] != "poll":
        os.kill(pid, order["do"])
    done, status = os.waitpid(pid, 0 if order["do"] == signal.SIGKILL else os.WNOHANG)
    print(os.waitstatus_to_exitcode(status) if done else "alive", flush=True)
"""


class ForkedTrainer:
    """At most one trainer at a time, of one server.

    Args:
        server: the process that runs `SERVER`.
    """

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server
        self._lives = False
        self.pid = 0

    def start(self, words: Sequence[str], output: Path) -> None:
        """Fork a trainer: `kssm WORDS...`, its output appended to a file."""
        assert not self._lives
        self.pid = int(self._ask({"do": "start", "words": list(words), "output": str(output)}))
        self._lives = True

    def ended(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        return self._told({"do": "poll"})

    def signal(self, number: int) -> int | None:
        """Send it a signal. After SIGKILL it is dead and reaped, and its exit code is told."""
        return self._told({"do": int(number)})

    def _told(self, order: dict[str, object]) -> int | None:
        assert self._lives
        answer = self._ask(order)
        self._lives = answer == "alive"
        return None if self._lives else int(answer)

    def _ask(self, order: dict[str, object]) -> str:
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return self._server.stdout.readline().strip()

    def end(self) -> None:
        """Leave no trainer behind."""
        if self._lives:
            self.signal(9)


@contextmanager
def forked_trainer(cache: Path, program: str = SERVER) -> Iterator[ForkedTrainer]:
    """A server of trainers that keep their token files in a folder; it ends with the block.

    Args:
        cache: that folder.
        program: of the server, which may do something to each trainer first.
    """
    environment = {**os.environ, "KSSM_CACHE": str(cache), "OMP_NUM_THREADS": "1", "SOLORUN_SHARE_ACCELERATOR": "1"}
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes) as server:  # type: ignore[call-overload]
        assert server.stdout.readline() == "ready\n"
        trainer = ForkedTrainer(server)
        try:
            yield trainer
        finally:
            trainer.end()
            server.stdin.close()
            server.wait(timeout=600)
