"""Parameters that several commands have."""

from __future__ import annotations

from typing import Annotated

from repq.recipe.base import AnyPath, Device, ImageSize, Seed, Threads, setting
from repq.recipe.data import Split
from repq.recipe.deployment import EngineName, RuntimeName

MODEL_FILE = "checkpoint, ONNX file or folder of a built engine"
OUT = "Where the result is written."

Weights = Annotated[AnyPath, setting(flag="WEIGHTS", help="Checkpoint, or float ONNX file of any detector.")]
Model = Annotated[AnyPath, setting(flag="MODEL", help=MODEL_FILE)]
Models = Annotated[tuple[AnyPath, ...], setting(flag="MODEL", min_length=1, help=MODEL_FILE)]
Data = Annotated[AnyPath, setting(flag="--data", help="data.yaml (YOLO) or a COCO .json.")]
AnyData = Annotated[
    AnyPath, setting(flag="--data", help="data.yaml (YOLO) or COCO .json; without AP also a folder or list of images.")
]
MaybeData = Annotated[AnyPath | None, setting(flag="--data", help="data.yaml (YOLO) or a COCO .json.")]
ValSplit = Annotated[Split, setting(flag="--split", excludes="--no-eval", help="Split of the data set.")]
DataSplit = Annotated[
    Split, setting(flag="--split", needs="--data", excludes="--no-eval", help="Split of the data set.")
]
Imgsz = Annotated[ImageSize, setting(flag="--imgsz", help="640 or HEIGHTxWIDTH.")]
OwnSize = Annotated[ImageSize | None, setting(flag="--imgsz", help="640 or HEIGHTxWIDTH.  [default: the model's own]")]
WHERE = "Where torch runs: auto, cpu, cuda, cuda:1 …"
TorchDevice = Annotated[Device, setting(flag="--device", help=WHERE)]
RunDevice = Annotated[Device, setting(flag="--device", needs=("MODEL checkpoint", "--engine torch|"), help=WHERE)]
Runtime = Annotated[RuntimeName | None, setting(flag="--engine", help="Runtime.  [default: what fits the file]")]
OWN_THREADS = "CPU threads.  [default: the runtime's own]"
ON_CPU = "MODEL checkpoint|onnx|engine on the CPU"
RunThreads = Annotated[
    Threads | None, setting(flag="--threads", needs=ON_CPU, excludes="--engine tensorrt", help=OWN_THREADS)
]
AnySeed = Annotated[Seed, setting(flag="--seed", help="Seed of everything that is random.")]
CheckpointOut = Annotated[AnyPath, setting(flag="-o --out", writes=".safetensors|.onnx", help=OUT)]
Target = Annotated[
    EngineName | None,
    setting(flag="--target", help="The runtime to ship: scheme, scales and types follow it where they are not given."),
]
Evaluated = Annotated[
    bool, setting(flag="--eval/--no-eval", help="Measure AP before and after; images without labels have none.")
]
SQUARE = (640, 640)
