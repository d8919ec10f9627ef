"""The program's start: `alignbench` and `python -m alignbench`.

Signals are answered from the first moment on, before anything large is imported.
"""

from __future__ import annotations

import signal
import sys

from alignbench.errors import EXIT_PARTIAL
from alignbench.training.signals import SIGNALS, Stopped, ignore_signals


def start() -> None:
    """Run the command line; a signal ends it in one line with exit status 3, whatever it is doing."""
    asked = []

    def interrupt(number: int, _: object) -> None:
        asked.append(number)
        raise Stopped

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
    try:
        from alignbench.cli.main import main

        main()
    except (Exception, KeyboardInterrupt):
        if not asked:  # a library that is interrupted while it is imported may fail in ways of its own
            raise
        sys.stderr.write("alignbench: interrupted → run the same command again\n")
        sys.exit(EXIT_PARTIAL)
    finally:
        ignore_signals()  # the work is over; Python takes its own answers back before it ends


if __name__ == "__main__":
    start()
