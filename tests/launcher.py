"""A program as a shell finds it, where a child of the keeper does the work; it ends as that child ends.

    python -ISE launcher.py SOCKET -m MODULE WORD...

What the keeper refuses becomes a true start. Signals that end a process are passed on. It imports only what is part of
the interpreter, for it is started hundreds of times.
"""

import _signal as signal
import _socket as socket
import marshal
import posix
import sys

PASSED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGTERM")


def main(address):
    fds = [fd for fd in map(int, posix.listdir("/proc/self/fd")) if was_given(fd)]
    numbers = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.connect(address)
    keeper.sendmsg([marshal.dumps({"fds": fds})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
    pid = received(keeper)
    if not pid:
        start()
    for number in map(vars(signal).get, PASSED_ON):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: posix.kill(pid, number))
    for fd in fds:
        posix.close(fd)
    end(received(keeper))


def was_given(fd):
    """Whether a descriptor is one that the command was started with: those of this program are its own."""
    try:
        return posix.get_inheritable(fd)
    except OSError:
        return False


def received(keeper):
    return int.from_bytes(keeper.recv(4), sys.byteorder, signed=True)


def start():
    """Become the command in the way of every day."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    words, environment = ([*parts(name)] for name in ("cmdline", "environ"))
    variables = dict(variable.split(b"=", 1) for variable in environment)
    posix.execve(sys.executable, [sys.executable, *words[4:]], variables)


def parts(name):
    with open(f"/proc/self/{name}", "rb") as file:
        return file.read().split(b"\0")[:-1]


def end(status):
    if status < 0:
        if signal.getsignal(-status) is not None and -status not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(-status, signal.SIG_DFL)
        posix.kill(posix.getpid(), -status)
    posix._exit(status)


main(sys.argv[1])
