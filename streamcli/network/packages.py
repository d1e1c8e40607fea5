"""Names of packages in; the command that installs them for this Python out, for errors that say what is missing.

Contract: the command is one that works as it stands; nothing is installed here.
"""

import importlib.util
import os
import shlex
import site
import sys
import sysconfig
from collections.abc import Iterable


def installing(packages: Iterable[str]) -> str:
    """The command, without what the packages depend on.

    An environment of uv's has no pip, and one of root's may be everybody's. A Python that is the system's to manage
    (PEP 668) takes them only below a target, which is the user's own folder: it looks there too.
    """
    python = shlex.quote(sys.executable)
    command = f"{python} -m pip install" if importlib.util.find_spec("pip") else f"uv pip install --python {python}"
    if sys.prefix != sys.base_prefix:
        command = command if os.access(sys.prefix, os.W_OK) else f"sudo {command}"
    elif os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")):
        command += f" --target {shlex.quote(site.getusersitepackages())}"
    return f"{command} --no-deps {' '.join(packages)}"
