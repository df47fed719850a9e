"""``python -m repq`` is the command line, which is also how ``torchrun`` starts it."""

import gc

from repq.machine.cpu import threads_within_quota
from repq.memory import few_arenas
from repq.spinning import spin_shortly
from repq.stopping import ending_on_signals


def main() -> None:
    """The command line, which a signal ends quietly even while it is imported."""
    spin_shortly()
    threads_within_quota()
    few_arenas()
    gc.set_threshold(5000, 10, 50)  # each walk over all that torch and its exporter load takes a quarter of a second
    with ending_on_signals():
        from repq.cli import main as commands

        commands(prog_name="repq")


if __name__ == "__main__":
    main()
