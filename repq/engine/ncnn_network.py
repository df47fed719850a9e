"""NCNN's own networks: opened from their two files and run.

Also a program that tries some of them, with ``python -P``: it is up in a third of the time, as it imports no engine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repq.errors import EngineError

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"


def open_files(folder: Path, threads: int | None, *, half: bool, keep_values: bool = False) -> Any:
    """A network that is ready to run.

    Args:
        half: weights are stored in FP16.
        keep_values: of every layer, so that each can be asked for.

    Raises:
        EngineError: NCNN does not know a layer, or cannot read the weights.
    """
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = False  # boxes lose digits in it from 512 pixels on
    # Else Arm processors with FP16 keep the values of an FP32 network in it, and x86 the weights of its products.
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = half
    net.opt.lightmode = not keep_values
    if threads is not None:
        net.opt.num_threads = threads
    if net.load_param(str(folder / PARAM)) or net.load_model(str(folder / BIN)):
        raise EngineError("NCNN cannot load the network", fix="see what it printed above, or use another engine")
    return net


def run(net: Any, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The outputs of one image (C, H, W), in the order of the graph.

    Raises:
        EngineError: NCNN gives up, for example because memory does not suffice.
    """
    extractor, failed = given(net, image)
    outputs = []
    for index in range(len(net.output_names())):
        code, values = extractor.extract(f"out{index}")
        failed = failed or code
        outputs.append(np.array(values, np.float32))
    if failed:
        raise EngineError("NCNN cannot run the network", found=f"code {failed}", fix="use smaller images, free memory")
    return outputs


def given(net: Any, image: NDArray[np.float32]) -> tuple[Any, int]:
    """What runs the network on one image as far as it is asked for, and NCNN's error code."""
    import ncnn

    extractor = net.create_extractor()
    # A Mat of an array does not own its values; a clone does.
    return extractor, extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)).clone())


def trial(folder: str, *, half: bool) -> None:
    """Run the network in a folder on ``images.npy`` beside it and write ``outputs.npz`` into it."""
    place = Path(folder)
    outputs = run(open_files(place, 1, half=half), np.load(place.parent / "images.npy")[0])
    np.savez(place / "outputs.npz", *outputs)


if __name__ == "__main__":
    for place, weights in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        trial(place, half=weights == "half")
