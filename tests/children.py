"""Processes for tests that kill them or let them work together.

Each is forked from a server that has imported everything once, because a new interpreter takes
longer to import torch and transformers than such a test takes for all else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "accelerate",
        "optuna",
        "tpcal.calibrate.calibrate",
        "tpcal.planner.search.run",
        "tpcal.workflow.evaluation",
    ]
)


class Child:
    """A process that runs a script; leaving the context kills it.

    Args:
        code: The script.
        arguments: The rest of its ``sys.argv``.
        stream: File number of the output to read: 1, or 2 for errors.
        cwd: Its folder.
        environ: Variables that it gets in addition to this process's.
    """

    def __init__(
        self,
        code: str,
        *arguments: object,
        stream: int = 1,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._reader, writer = _context.Pipe(duplex=False)
        self.lines = os.fdopen(self._reader.fileno(), encoding="utf-8", closefd=False)
        """The text that it writes, line by line."""
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environ or {})}
        args = (code, [*map(str, arguments)], writer, stream, cwd, variables)
        self._process = _context.Process(target=_run, args=args)
        self._process.start()
        writer.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.kill()
        self.wait()
        self.lines.close()
        self._reader.close()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended; negative for the signal that ended it."""
        self._process.join(250)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode


def _run(
    code: str,
    arguments: list[str],
    writer: Connection,
    stream: int,
    cwd: Path | None,
    variables: dict[str, str],
) -> None:
    import torch

    torch.set_num_threads(1)
    os.dup2(writer.fileno(), stream)
    # Opened anew, because the server's own may be of a file and not of a pipe.
    name = {1: "stdout", 2: "stderr"}[stream]
    setattr(sys, name, os.fdopen(stream, "w", encoding="utf-8", closefd=False))
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd or Path.cwd())
    sys.argv = ["script", *arguments]
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})
