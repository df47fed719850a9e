"""Nothing leaves the machine, and nothing is written but where the user says.

What other packages would do by themselves is switched off before they load:

- ONNX Runtime (1.31 and later) looks a telemetry host up and stores a device id and a data base in the user's cache
  folder; ``ORT_DISABLE_TELEMETRY`` stops both. It is read when the library loads.
- ``import openvino`` looks an analytics host up and writes ``~/intel``, by the package ``openvino_telemetry``. OpenVINO
  takes a stub of its own where that package cannot be imported.
- Matplotlib keeps its settings and a list of fonts in the home folder; ``MPLCONFIGDIR`` names another one.
"""

from __future__ import annotations

import os
import sys


def switch_off_telemetry() -> None:
    """Keep the runtimes that this process and its children load later from calling home.

    What was imported before is not undone. A variable that the user has set stays.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it then fails


def keep_matplotlib_out_of_home() -> None:
    """Give Matplotlib, which is imported next, a folder in ``cache_folder()``, unless the user has named one."""
    from repq.files import cache_folder  # loads much that `import repq` need not wait for

    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
