"""The far side of `--host`: a connection that is lost becomes the hang-up that a closed terminal would send.

With a terminal the kernel does that. Without one, sshd only closes its ends of the streams: a verb that happens to
write nothing would never notice, and `logs -f` would stay behind for ever.
"""

from __future__ import annotations

import select
import signal
import threading
from collections.abc import MutableMapping

VARIABLE = "SOLORUN_FORWARDED"
_GONE = select.POLLHUP | select.POLLERR


def heed_the_connection(environment: MutableMapping[str, str], stream: int = 1) -> None:
    """Send this process SIGHUP when the other end of its output is closed; only where the near side asked for it.

    Args:
        environment: SOLORUN_FORWARDED asks for it, and is taken out: a run that is started must not inherit it.
        stream: the descriptor that leads to the near side. It is not duplicated: sshd waits for every copy to close.
    """
    if environment.pop(VARIABLE, None):
        main = threading.main_thread().ident or 0
        threading.Thread(target=_watch, args=(stream, main), name="connection", daemon=True).start()


def _watch(stream: int, main: int) -> None:
    watch = select.poll()
    watch.register(stream, select.POLLHUP)  # Linux tells it unasked, macOS only when asked
    while True:
        for _, event in watch.poll():
            if event & _GONE:
                signal.pthread_kill(main, signal.SIGHUP)
            if event:  # told once; also when the descriptor was closed here
                return
