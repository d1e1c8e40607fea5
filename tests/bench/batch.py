"""What many prompts at once cost, and whether results survive: figures of the real command with --batch.

    python tests/bench/batch.py wall [--lines 1000] [--jobs 100] [--delay 1]
    python tests/bench/batch.py memory [--lines 1000000] [--seconds 60]
    python tests/bench/batch.py crash [--kills 300] [--seed N]

`wall` asks a server that answers each request after so many seconds: wall time, and CPU time and memory a stream, the
CPU time also beside that of asyncio alone with as many connections.
`memory` checks so many lines, asks a server that answers at once for so many seconds, is interrupted then, and goes on
for as long again: the largest resident size of each. `crash` kills the command at random moments until it was killed so
often, and checks after each that no result is lost or asked for twice; exits 1 where one was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from server import LAST_CHUNK, Server, chunk, head, text_events  # noqa: E402 - found by the line above

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER = head(chunked=True) + b"".join(map(chunk, text_events("Hello", " world"))) + LAST_CHUNK
BACKLOG = 4096


class _Connection(asyncio.Protocol):
    """Reads one request and answers it `delay` seconds later."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._data = b""
        self._length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        top, blank, _ = self._data.partition(b"\r\n\r\n")
        if blank and not self._length:
            fields = dict(line.split(b": ", 1) for line in top.lower().split(b"\r\n")[1:])
            self._length = len(top) + 4 + int(fields[b"content-length"])
        if self._length and len(self._data) >= self._length:
            asyncio.get_running_loop().call_later(self._delay, self._answer)

    def _answer(self) -> None:
        self._transport.write(ANSWER)
        self._transport.close()


async def serve(delay: float) -> None:
    """Print the port and serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(delay), "127.0.0.1", 0, backlog=BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextlib.contextmanager
def serving(delay: float) -> Iterator[str]:
    """The URL of such a server, in a process of its own."""
    command = [sys.executable, __file__, "serve", str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()


def write_input(path: Path, lines: int) -> None:
    with path.open("w") as file:
        file.writelines(
            f'{{"custom_id":"request-{n}","prompt":"Say hello to number {n}, please"}}\n' for n in range(lines)
        )


def peak_mib(pid: int) -> float:
    """The largest resident size of a process so far (VmHWM); what the kernel reports later includes its parent's."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) / 1024
    return 0


class Run:
    """One run of the command, watched until it ends, or interrupted after so many seconds."""

    def __init__(self, *argv: object, seconds: float | None = None) -> None:
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, "-m", "streamcli", *map(str, argv)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        self.peak = 0.0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self.peak = max(self.peak, peak_mib(process.pid))
            if seconds and time.monotonic() - begin > seconds:
                process.send_signal(signal.SIGINT)
                seconds = None
            time.sleep(0.01)
        self.said = process.communicate()[1].decode().strip()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.wall = time.monotonic() - begin
        self.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.status = process.returncode


def asyncio_alone(*words: object) -> float:
    """The CPU seconds that asyncio takes for the same connections."""
    script = Path(__file__).with_name("peers") / "asyncio_raw.py"
    return float(subprocess.run([sys.executable, script, *map(str, words)], stdout=subprocess.PIPE, check=True).stdout)


def wall(folder: Path, options: argparse.Namespace) -> int:
    lines = options.lines or 1000
    write_input(folder / "in", lines)
    write_input(folder / "one", 1)
    with serving(options.delay) as url:
        start = Run("--base-url", url, "--batch", folder / "one", "-o", folder / "started")
        run = Run("--base-url", url, "--batch", folder / "in", "-o", folder / "out", "-j", options.jobs)
        bare = {what: asyncio_alone(what, url, lines, options.jobs) for what in ("asked", "parsed")}
    print(f"{lines} prompts, {options.jobs} at once, {options.delay:g} s each: {run.wall:.2f} s, status {run.status}")
    cpu, size = (run.cpu - start.cpu) / lines * 1000, (run.peak - start.peak) / options.jobs * 1024
    print(f"  CPU {run.cpu:.2f} s, of it {start.cpu:.2f} to start: {cpu:.2f} ms a stream")
    for what, seconds in bare.items():
        print(f"  {cpu * lines / 1000 / seconds:.2f} x asyncio alone, {what}: {seconds / lines * 1000:.2f} ms a stream")
    print(f"  peak {run.peak:.1f} MiB, of it {start.peak:.1f} with one: {size:.0f} KiB a stream")
    return run.status


def memory(folder: Path, options: argparse.Namespace) -> int:
    lines = options.lines or 1_000_000
    with serving(0) as url:
        peaks = {}
        for count in (1, 1000, lines):
            write_input(folder / "in", count)
            (folder / "bad").write_bytes((folder / "in").read_bytes() + b"nonsense\n")
            checked = Run("--base-url", url, "--batch", folder / "bad")
            assert checked.status == 2
            peaks[count] = checked.peak
            print(f"{count} lines checked: {checked.wall:.1f} s, peak {checked.peak:.1f} MiB")
        print(f"  {(peaks[lines] - peaks[1000]) * 1024 * 1024 / lines:.0f} bytes a line at the peak")
        for resume in ((), ("--resume",)):
            run = Run(
                *("--base-url", url, "--batch", folder / "in", "-o", folder / "out", "-j", options.jobs, *resume),
                seconds=options.seconds,
            )
            print(
                f"asked {' '.join(resume)}: {run.wall:.0f} s, peak {run.peak:.1f} MiB, CPU {run.cpu:.1f} s; {run.said}"
            )
    return 0


def crash(folder: Path, options: argparse.Namespace) -> int:
    from test_many import Crashes  # noqa: PLC0415 - pytest is needed for nothing else here

    crashes = Crashes(folder, random.Random(options.seed))
    with Server(crashes.answer) as server:
        number = 0
        while crashes.kills < options.kills:
            crashes.batch(server, number)
            number += 1
            print(
                f"{number} batches, {crashes.kills} kills of {crashes.runs} runs, {crashes.torn} torn tails", flush=True
            )
    print(f"seed {options.seed}: nothing lost, nothing asked twice")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["wall", "memory", "crash", "serve"])
    parser.add_argument("number", nargs="?", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=int)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--delay", type=float, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    if options.what == "serve":
        asyncio.run(serve(options.number))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return {"wall": wall, "memory": memory, "crash": crash}[options.what](Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
