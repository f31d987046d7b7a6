"""A process for every run: one that dies takes nothing with it but its own run."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from abkd_fast.study.cells import Cell


class Pool:
    """Runs cells, up to ``workers`` at a time, each in a process forked from a clean server.

    The server has imported torch, so that a run does not wait for that; the memory of a run is its
    own, and what a crash leaves behind ends with the process.

    Args:
        workers: processes at a time.
        threads: threads of each.
        place: folder for teachers and for the output of every run.
    """

    def __init__(self, workers: int, threads: int, place: Path) -> None:
        self.workers, self.threads, self.place = workers, threads, place
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the server, whose children inherit it
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", "abkd_fast.study.worker"])
        self._threads = ThreadPoolExecutor(workers)
        self._running: set[ForkServerProcess | BaseProcess] = set()

    def submit(self, cell: Cell) -> Future[dict[str, Any]]:
        """The record of a run, with an error where it failed."""
        return self._threads.submit(self._run, cell)

    def close(self) -> None:
        """End what still runs."""
        for process in list(self._running):
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def log(self, cell: Cell) -> Path:
        """Where a run's output goes."""
        return self.place / "logs" / f"{cell.key}.log"

    def _run(self, cell: Cell) -> dict[str, Any]:
        from abkd_fast.study.worker import work

        receive, send = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=work, args=(cell, self.place, self.threads, send, self.log(cell)), daemon=True
        )
        process.start()
        self._running.add(process)
        send.close()
        try:
            record: dict[str, Any] = receive.recv()
        except (EOFError, OSError):  # it died before, or in the middle of its message
            process.join()
            record = {**cell.about(), "error": self._death(process, cell)}
        finally:
            receive.close()
            process.join()
            self._running.discard(process)
        return record

    def _death(self, process: BaseProcess, cell: Cell) -> str:
        code = process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the process ended with {how}; see {self.log(cell)}"
