"""Two processes of which the second hangs when the others wait for it; started by a test."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from repq.distributed import gathered, joined_processes
from repq.errors import TrainingError

PATIENCE = timedelta(seconds=1)

if __name__ == "__main__":
    try:
        with joined_processes("cpu", PATIENCE) as (processes, _):
            gathered("both are here")
            if not processes.is_first:
                time.sleep(3 * PATIENCE.total_seconds())
            gathered("now one is not")
    except TrainingError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
