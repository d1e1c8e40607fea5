"""Lines of JSON objects in a file that survives: locked, appended whole or not at all, replaced in one step.

Contract: at every moment the file holds the lines that were appended, each append whole, and perhaps a torn tail, which
`lines` leaves out and the next append removes. An append writes its first byte last, so a tail is torn if that byte is
still NUL, or if the last line is a JSON object cut short. Anything else that is not JSON did not come from an append,
is returned as it stands and never overwritten. One process at a time holds the file. A fault of writing is OutputError
and leaves the lines as they were, and so does any other exception. Nothing is written into a file that another program
changed meanwhile. One line at a time is in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import stat
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Self

from streamcli.errors import OutputError, UsageError, reason
from streamcli.protocol.jsontext import loads, object_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_BLOCK = 1 << 20
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


class Journal:
    """The file at `path`, which is made with `mode` if it is not there, held until `close`.

    `busy` is called once if another process holds the file, before waiting for it; it may raise instead. `torn` says
    whether a tail is left out. Raises OutputError if the file cannot be opened for writing, UsageError if it is not a
    regular file or cannot be read.
    """

    def __init__(self, path: str, *, mode: int, busy: Callable[[], None]) -> None:
        self.path = path
        self.torn = False
        # The lines end at `_end`, perhaps in one without a line end; what stands behind them up to `_size` is the tail.
        self._unended = False
        try:
            self._file = os.path.realpath(path)
            self._fd, self._made = _locked(self._file, mode, busy)
        except IsADirectoryError:
            raise UsageError(f"{path} is a directory") from None
        except (OSError, ValueError) as fault:
            raise self._unwritable(fault) from None
        with self.closed_on_failure():
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is not a regular file")
            self._size = self._end = status.st_size
            directory, name = os.path.split(self._file)
            self._replacement = os.path.join(directory, f".{name}.streamcli")
            with contextlib.suppress(OSError):
                os.unlink(self._replacement)  # of a run that was killed while it replaced the file
            self._find_tail()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextlib.contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """For whoever opens it, until what they read there is known to be good."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    @property
    def empty(self) -> bool:
        """Whether there are no lines."""
        return self._end == 0

    def lines(self) -> Iterator[bytes]:
        """The lines, without line ends and byte order mark. Raises UsageError."""
        mark = BOM_UTF8
        for line in self._read(0, self._end):
            yield line.removeprefix(mark).rstrip(b"\r\n")
            mark = b""

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, each with its number, counted from 1. Raises UsageError."""
        return ((number, line) for number, line in enumerate(self.lines(), 1) if line.strip())

    def keep(self, count: int) -> None:
        """Have only the first `count` lines count from now on; the file changes with the next append."""
        end = 0
        for line, _ in zip(self._read(0, self._end), range(count), strict=False):
            end += len(line)
        self._unended = self._unended and end == self._end
        self._end = end

    def append(self, lines: bytes, *, together: bool = True) -> None:
        """Add whole lines, each with its line end; they are on the disk when this returns.

        A process that is killed at any moment leaves all of them or none of them, or, if they do not belong `together`,
        some of them, each whole. Raises OutputError.
        """
        if not lines:
            return
        self._check_unchanged()
        end, view = self._end, memoryview(lines)
        first, rest = (b"\n", view) if self._unended else (view[:1], view[1:])
        after = end + len(first) + len(rest)
        try:
            if self._size != end:
                os.ftruncate(self._fd, end)
            if together:
                _write(self._fd, rest, end + 1)
                os.fsync(self._fd)
                _write(self._fd, first, end)
            else:
                _write(self._fd, b"".join([first, rest]), end)
            os.fsync(self._fd)
            if self._made:
                _sync_directory(self._file)
        except BaseException as fault:
            self._take_back(fault)
            raise
        self._size = self._end = after
        self._unended = self.torn = self._made = False

    def end_line(self) -> None:
        """End the last line, if it has no line end. Raises OutputError."""
        if self._unended:
            self._unended = False
            self.append(b"\n")

    def replace(self, lines: Iterable[bytes]) -> None:
        """Make `lines`, each with its line end, the whole content: all of it, on the disk, or nothing.

        Raises OutputError.
        """
        self._check_unchanged()
        fd = -1
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._replacement)
            fd = os.open(self._replacement, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))
            # Before it gets the name, so that a run that waited for the old file now waits for this one.
            fcntl.flock(fd, fcntl.LOCK_EX)
            with open(fd, "wb", buffering=_BLOCK, closefd=False) as file:
                file.writelines(lines)
            os.fsync(fd)
            os.replace(self._replacement, self._file)
        except BaseException as fault:
            if fd >= 0:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(self._replacement)
            if isinstance(fault, OSError):
                raise self._unwritable(fault) from None
            raise
        old, self._fd = self._fd, fd
        os.close(old)
        self._size = self._end = os.fstat(fd).st_size
        self._unended = self.torn = False
        _sync_directory(self._file)

    def tail(self) -> bytes:
        """What stands behind the lines, and is removed by the next append."""
        return b"".join(self._read(self._end, self._size))

    def close(self) -> None:
        """Release the file; one that was made here and is empty is removed."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with contextlib.suppress(OSError):
            if self._made and os.fstat(fd).st_size == 0 and _is_at(fd, self._file):
                os.unlink(self._file)
        os.close(fd)

    def _find_tail(self) -> None:
        """Find where the lines end. What another program wrote counts as lines, whatever it is.

        A broken append can only have left what begins with the first line that has no line end, or holds a NUL. If that
        line begins with a whole object, the file had no line end there, and the append began with one.
        """
        at = 0
        for line in self._read(0, self._size):
            if line.endswith(b"\n") and b"\0" not in line:
                at += len(line)
                continue
            head = line.partition(b"\0")[0]
            last = head.removeprefix(BOM_UTF8) if at == 0 else head
            whole = at + len(head) if object_in(last) is not None else at
            if whole < self._size and self._is_broken_append(whole, b"\n" if whole > at else b"{"):
                self.torn, self._end = True, whole
            self._unended = self._end > 0 and [*self._read(self._end - 1, self._end)] != [b"\n"]
            return

    def _is_broken_append(self, start: int, first: bytes) -> bool:
        """Whether an append that begins with the byte `first` can have left what is there from `start` on."""
        lines = self._read(start, self._size)
        begun = next(lines, b"")
        if begun[:1] not in {b"\0", first}:
            return False
        restored = (first + begun[1:]).lstrip(b"\n")
        return all(map(_is_of_an_append, itertools.chain([restored], lines)))

    def _read(self, at: int, end: int) -> Iterator[bytes]:
        """The lines between two offsets, with their ends."""
        pieces: list[bytes] = []
        while at < end:
            try:
                block = os.pread(self._fd, min(_BLOCK, end - at), at)
            except OSError as fault:
                raise UsageError(f"cannot read {self.path}: {reason(fault)}") from None
            if not block:
                break
            at += len(block)
            *ended, rest = block.split(b"\n")
            for part in ended:
                yield b"".join((*pieces, part, b"\n"))
                pieces.clear()
            pieces.append(rest)
        if any(pieces):
            yield b"".join(pieces)

    def _check_unchanged(self) -> None:
        try:
            there, size = _is_at(self._fd, self._file), os.fstat(self._fd).st_size
        except OSError as fault:
            raise self._unwritable(fault) from None
        if not there or size != self._size:
            what = "changed" if there else "removed or replaced"
            raise OutputError(f"cannot write to {self.path}: another program {what} it meanwhile")

    def _take_back(self, fault: BaseException) -> None:
        """Undo a broken append, and raise OutputError for an OSError."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._end)
        with contextlib.suppress(OSError):
            self._size = os.fstat(self._fd).st_size
        if isinstance(fault, OSError):
            raise self._unwritable(fault) from None

    def _unwritable(self, fault: OSError | ValueError) -> OutputError:
        if getattr(fault, "errno", None) in _NO_LOCKS:  # as NFS may be mounted
            why = f"{reason(fault)}: its file system has no locks; use a file elsewhere"
            return OutputError(f"cannot lock {self.path}: {why}")
        return OutputError(f"cannot write to {self.path}: {reason(fault)}")


class Keeper:
    """What keeps its lines in a journal, whose file it holds until `close`."""

    _journal: Journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; one that was made here and is empty is removed."""
        self._journal.close()


def _locked(path: str, mode: int, busy: Callable[[], None]) -> tuple[int, bool]:
    """A descriptor that holds the lock of the file at `path`, and whether the file was made here.

    While we wait for the lock the file may be replaced; then the new one has to be locked.
    """
    told = False
    while True:
        fd, made = _opened(path, mode)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    busy()
                told = True
                fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(fd, path):
                return fd, made
        except BaseException as fault:
            if isinstance(fault, OSError) and made:  # nobody else can hold it either
                with contextlib.suppress(OSError):
                    os.unlink(path)
            os.close(fd)
            raise
        os.close(fd)


def _opened(path: str, mode: int) -> tuple[int, bool]:
    # Non-blocking, because opening a device may wait for somebody.
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(path, flags), False
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, mode), True


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _write(fd: int, data: memoryview | bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _sync_directory(path: str) -> None:
    """Let the file's name survive a power cut too, where the file system can promise that."""
    with contextlib.suppress(OSError):
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _is_of_an_append(line: bytes) -> bool:
    """Whether the line is an object, or blank, or, where it has no line end, one that did not reach the disk whole."""
    if line.endswith(b"\n"):
        return not line.strip() or object_in(line) is not None
    written = line.rstrip(b"\0")
    return not written.strip() or object_in(written) is not None or _is_cut(written)


def _is_cut(line: bytes) -> bool:
    """Whether more bytes could make this a JSON object."""
    try:
        loads(line)
    except json.JSONDecodeError as fault:
        return line.startswith(b"{") and fault.pos == len(fault.doc)
    return False
