"""Ctrl-C, and a polite kill, as a wish that is granted at the end of a step."""

import signal
import threading


class Interrupt:
    """Within its `with` block a first SIGINT or SIGTERM sets `wanted`; a second one acts as it always does.

    A step that is broken off in the middle would leave weights of which half are new.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "Interrupt":
        self.wanted, self.previous = False, {}
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            self.previous = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, *_) -> None:
        self.wanted = True
        self.__exit__()
