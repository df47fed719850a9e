"""``python -m repq`` is the command line, which is also how ``torchrun`` starts it."""

from repq.cli import main

main(prog_name="repq")
