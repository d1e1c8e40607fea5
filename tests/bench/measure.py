"""What can be measured of a command, each in one function: wall time, peak memory, latency, what it says of itself.

Every command gets the same small environment, must end with status 0 within a time limit, and is never given a
terminal. Its standard error is shown where it fails.
"""

from __future__ import annotations

import os
import re
import select
import statistics
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TIME_LIMIT = 300
POLL_SECONDS = 0.005
# The first deltas find caches cold and buffers unsized.
SKIPPED_DELTAS = 50

_VM_HWM = re.compile(r"VmHWM:\s+(\d+) kB")


class WorkError(Exception):
    """A command did not do its work."""


class Commands:
    """Runs commands in `folder` with `environment`, standard input from `stdin` or nowhere."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    @contextmanager
    def _running(self, command: list, stdout: int, stdin: Path | str) -> Iterator[subprocess.Popen[bytes]]:
        with tempfile.TemporaryFile() as errors, Path(stdin).open("rb") as source:
            process = subprocess.Popen(
                command, stdin=source, stdout=stdout, stderr=errors, env=self.environment, cwd=self.folder
            )
            limit = threading.Timer(TIME_LIMIT, process.kill)  # a wait with a timeout would look only every 50 ms
            limit.start()
            try:
                yield process
                status = process.wait()
            finally:
                limit.cancel()
                process.kill()
            if status:
                errors.seek(0)
                last = errors.read().decode("utf-8", "replace").strip()[-500:]
                raise WorkError(f"{' '.join(map(str, command))}: status {status}: {last}")

    def output(self, command: list, stdin: Path | str = os.devnull) -> bytes:
        """What the command writes to standard output."""
        with self._running(command, subprocess.PIPE, stdin) as process:
            return process.stdout.read()

    def seconds(self, command: list) -> float:
        """The command's whole life, from before it is started to after it is gone, its output thrown away."""
        begin = time.perf_counter()
        with self._running(command, subprocess.DEVNULL, os.devnull) as process:
            process.wait()
            return time.perf_counter() - begin

    def number(self, command: list) -> float:
        """The number that the command prints: what it measured of itself."""
        return float(self.output(command))

    def peak_mib(self, command: list, stdin: Path | str = os.devnull) -> float:
        """The largest resident size of the command's process (VmHWM), in MiB, its output read and thrown away.

        It is asked of /proc while the process lives: what the kernel reports afterwards can include the parent's.
        """
        peak = 0
        with self._running(command, subprocess.PIPE, stdin) as process:
            due = 0.0
            open_ = True
            while open_:
                if select.select([process.stdout], [], [], POLL_SECONDS)[0]:
                    open_ = bool(os.read(process.stdout.fileno(), 1 << 20))
                if time.monotonic() >= due:
                    peak = max(peak, _vm_hwm(process.pid))
                    due = time.monotonic() + POLL_SECONDS
        return peak / 1024

    def latency(self, command: list) -> float:
        """The median of the microseconds between the server's write of a delta and this process's read of its text.

        Each line of the output is the time at which the server wrote it, on the monotonic clock, which all processes
        of one machine share; the clock is looked at as soon as the read returns.
        """
        reads = []
        with self._running(command, subprocess.PIPE, os.devnull) as process:
            while data := os.read(process.stdout.fileno(), 65536):
                reads.append((time.monotonic_ns(), data))
        delays = list(_delays(reads))[SKIPPED_DELTAS:]
        if not delays:
            raise WorkError(f"{' '.join(map(str, command))}: no deltas")
        return statistics.median(delays) / 1000


def _delays(reads: list[tuple[int, bytes]]) -> Iterator[int]:
    rest = b""
    for now, data in reads:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line:
                yield now - int(line)


def _vm_hwm(pid: int) -> int:
    try:
        found = _VM_HWM.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        found = None
    return int(found[1]) if found else 0
