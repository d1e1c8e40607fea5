"""A link that takes time, between this machine and a server in a network namespace of its own.

Two TUN devices, one here and one there, and a process that hands the packets of each to the other half a round trip
later. It needs root, `ip` and /dev/net/tun. `python link.py NAME MILLISECONDS SUBNET` is that process; it goes on until
its standard input ends, and then nothing of the link is left.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).absolute().parent
_TUN = "/dev/net/tun"
# From linux/if_tun.h: a device of IP packets, without a header of its own before each.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 65536


class Far:
    """A server at the other end of a link: its URL, and the authorities to trust in a file."""

    def __init__(self, url: str, authorities: Path) -> None:
        self.url = url
        self.authorities = authorities


def is_possible() -> bool:
    return os.geteuid() == 0 and bool(shutil.which("ip")) and os.path.exists(_TUN)


@contextmanager
def far_server(milliseconds: int, folder: Path) -> Iterator[Far]:
    """The server of the bench with TLS, a round trip of so many milliseconds away; its certificate is in `folder`."""
    name, subnet = f"bench{milliseconds}", f"198.18.{milliseconds}"  # addresses that are set apart for benchmarks
    authorities = _certificate(folder, f"{subnet}.2")
    link = [sys.executable, __file__, name, milliseconds, subnet]
    server = ["ip", "netns", "exec", name, sys.executable, HERE / "server.py", f"{subnet}.2", folder / "server.pem"]
    with _until_closed(link), _until_closed(server) as port:
        yield Far(f"https://{subnet}.2:{port}", authorities)


def _certificate(folder: Path, host: str) -> Path:
    """Make server.pem for `host`; returns a file with its authority among all the usual ones, which take their time."""
    import certifi  # noqa: PLC0415
    import trustme  # noqa: PLC0415

    authority, authorities = trustme.CA(), folder / "authorities.pem"
    authority.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    authorities.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    return authorities


@contextmanager
def _until_closed(command: list) -> Iterator[str]:
    """The first line of a process that lives until its standard input ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, text=True) as process:
        line = process.stdout.readline().strip()
        if not line:
            raise OSError(f"{command} did not start")
        yield line


def main(name: str, milliseconds: str, subnet: str) -> None:
    os.nice(-10)  # it must not be what is measured
    with ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "delete", name)
        here, there = (_device(f"{name}{end}") for end in "ab")
        _ip("link", "set", f"{name}b", "netns", name)
        for end, prefix in (("a", []), ("b", ["-n", name])):
            address = f"{subnet}.{1 if end == 'a' else 2}/30"
            _ip(*prefix, "address", "add", address, "dev", name + end)
            _ip(*prefix, "link", "set", name + end, "up")
        print("up", flush=True)
        forward({here: there, there: here}, int(milliseconds) / 2000)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _device(name: str) -> int:
    device = os.open(_TUN, os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def forward(ways: dict[int, int], delay: float) -> None:
    """Hand each packet of a device on to the other, `delay` seconds after it came, until standard input ends."""
    held: deque[tuple[float, int, bytes]] = deque()
    while True:
        left = max(0, held[0][0] - time.monotonic()) if held else None
        ready, _, _ = select.select([sys.stdin, *ways], [], [], left)
        if sys.stdin in ready:
            return
        for device in ready:
            held.append((time.monotonic() + delay, ways[device], os.read(device, _PACKET_BYTES)))
        while held and held[0][0] <= time.monotonic():
            _, device, packet = held.popleft()
            os.write(device, packet)


if __name__ == "__main__":
    main(*sys.argv[1:])
