"""`python -m streamcli`, and the command's entry point."""

from __future__ import annotations

import gc
import signal
from typing import NoReturn


def main() -> NoReturn:
    """The command: never returns."""
    # Before anything is imported: Ctrl-C while there is nothing to finish ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What is imported stays: to look for garbage in it, again and again, costs a tenth of the start.
    gc.disable()
    from streamcli.cli import main as command  # noqa: PLC0415

    command.main()


if __name__ == "__main__":
    main()
