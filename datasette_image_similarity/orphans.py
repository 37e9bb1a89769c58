"""A child process does not outlive the process that started it, whatever both are doing.

A child that waits for its next request sees that stdin was closed. One that is decoding
does not, nor one that was stopped (SIGSTOP, a debugger): that takes the system's help.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LOOK_SECONDS = 1.0


def end_with_parent() -> None:
    """Have this process end when its parent has, at once or within a second.

    Linux kills it, when the thread that started it ends: who starts it sees to it that
    this thread lives as long (`images.Guard`). Elsewhere a thread looks for the parent; a
    stopped process then ends when somebody lets it go on. Windows has neither: there the
    end of stdin has to do.
    """
    if sys.platform == "linux" and _dies_with_parent():
        return
    if sys.platform != "win32":
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _dies_with_parent() -> bool:
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):  # a Python without ctypes
        return False
    return prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
