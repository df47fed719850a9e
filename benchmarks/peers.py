"""Other quantizers, used the way that their manuals say, on the float ONNX model that repq exports."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from repq.bench import Runner, TimedModel
from repq.engine import openvino as openvino_engine
from repq.engine.onnxruntime import executed_layers, result_names
from repq.engine.source import name_layers, read_source
from repq.results import LayerPrecision, ModelInfo

Images = NDArray[np.float32]


class Peer:
    """An INT8 model of another tool: how to run it with some threads, what really runs, and its size."""

    def __init__(self, label: str, engine: str) -> None:
        self.label, self.engine = label, engine

    def infer(self, threads: int) -> Any:
        """Return a function from images to the output array."""
        raise NotImplementedError

    def layers(self) -> tuple[LayerPrecision, ...]:
        """Precision of every convolution that runs."""
        raise NotImplementedError

    def size_bytes(self) -> int:
        """Bytes on disk."""
        raise NotImplementedError

    def timed(self, batch: int | None) -> TimedModel:
        """Wrap it for ``repq.bench.bench``."""
        info = ModelInfo(
            model=self.label,
            engine=self.engine,
            variant="int8",
            precision=summary(self.layers()),
            size_bytes=self.size_bytes(),
        )
        return TimedModel(info, lambda threads: Runner(self.infer(threads)), batch)


class OpenVinoPeer(Peer):
    """A model in plain OpenVINO, with the options that repq's engine uses. Default: the file as it is."""

    def __init__(self, label: str, onnx_path: Path) -> None:
        import openvino

        super().__init__(label, "openvino")
        source = read_source(onnx_path)
        self._ids = source.layers
        self._model = openvino.Core().read_model(source.model.SerializeToString())

    def _compiled(self, threads: int | None) -> Any:
        import openvino

        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        return openvino.Core().compile_model(self._model, "CPU", options)

    def infer(self, threads: int) -> Any:
        request = self._compiled(threads).create_infer_request()
        return lambda images: np.array(request.infer([images], share_inputs=True)[0])

    def layers(self) -> tuple[LayerPrecision, ...]:
        return openvino_engine.executed_layers(openvino_engine.executed_nodes(self._compiled(None)), self._ids)

    def size_bytes(self) -> int:
        import openvino

        with tempfile.TemporaryDirectory() as scratch:
            openvino.save_model(self._model, f"{scratch}/model.xml", compress_to_fp16=False)
            return sum(file.stat().st_size for file in Path(scratch).iterdir())


class NncfPeer(OpenVinoPeer):
    """``nncf.quantize`` on the OpenVINO model."""

    def __init__(self, onnx_path: Path, images: Sequence[Images], preset: str) -> None:
        import nncf

        super().__init__(f"NNCF INT8 ({preset})", onnx_path)
        self._model = nncf.quantize(
            self._model,
            nncf.Dataset(list(images)),
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(images),
        )


class OnnxRuntimePeer(Peer):
    """A file in a session of ONNX Runtime as it is by default, but for the number of threads."""

    def __init__(self, label: str, onnx_path: Path) -> None:
        super().__init__(label, "onnxruntime")
        self._path = onnx_path

    def _session(self, threads: int | None, optimized: str | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.inter_op_num_threads = 1
        if threads:
            options.intra_op_num_threads = threads
        if optimized:
            options.optimized_model_filepath = optimized
        return onnxruntime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])

    def infer(self, threads: int) -> Any:
        session = self._session(threads)
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]

    def layers(self) -> tuple[LayerPrecision, ...]:
        model = onnx.load(str(self._path))
        ids, _ = name_layers(model)
        with tempfile.TemporaryDirectory() as scratch:
            self._session(None, f"{scratch}/optimized.onnx")
            executed = onnx.load(f"{scratch}/optimized.onnx")
        return executed_layers(executed.graph, ids, result_names(model.graph, ids))

    def size_bytes(self) -> int:
        return self._path.stat().st_size


class NncfOnnxPeer(OnnxRuntimePeer):
    """``nncf.quantize`` on the ONNX model, mixed preset."""

    def __init__(self, onnx_path: Path, images: Sequence[Images], folder: Path) -> None:
        import nncf

        super().__init__("NNCF INT8 of the ONNX file (mixed)", folder / "nncf.onnx")
        name = read_source(onnx_path).input.name
        quantized = nncf.quantize(
            onnx.load(str(onnx_path)),
            nncf.Dataset([{name: image} for image in images]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
        )
        onnx.save(quantized, str(self._path))


class QuantizeStaticPeer(OnnxRuntimePeer):
    """``quantize_static``: Q/DQ, UINT8 activations, INT8 weights per channel; run without any change to the graph.

    The decoding after the last convolutions is left out: boxes up to 640 and scores up to 1 in one 8-bit tensor would
    leave no score at all.
    """

    def __init__(self, onnx_path: Path, images: Sequence[Images], folder: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self, name: str) -> None:
                self._feeds: Iterator[dict[str, Images]] = iter([{name: image} for image in images])

            def get_next(self) -> dict[str, Images] | None:
                return next(self._feeds, None)

        super().__init__("ONNX Runtime quantize_static (U8S8)", folder / "ort-int8.onnx")
        prepared = folder / "ort-prepared.onnx"
        quant_pre_process(str(onnx_path), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(self._path),
            Reader(read_source(onnx_path).input.name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=decoding_nodes(onnx.load(str(prepared))),
        )


def modelopt_int8(onnx_path: Path, images: Sequence[Images], folder: Path) -> Path:
    """The file that ModelOpt's quantizer for ONNX writes: symmetric Q/DQ for TensorRT, entropy calibration.

    It works in a process of its own: imported, it changes ONNX Runtime's quantizer for all that comes after.
    """
    written = folder / "modelopt-int8.onnx"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_run_modelopt, onnx_path, np.concatenate(images), written).result()
    return written


def _run_modelopt(onnx_path: Path, images: Images, written: Path) -> None:
    from modelopt.onnx.quantization import quantize

    name = read_source(onnx_path).input.name
    quantize(
        str(onnx_path),
        quantize_mode="int8",
        calibration_data={name: images},
        calibration_method="entropy",
        calibration_shapes=f"{name}:1x{'x'.join(map(str, images.shape[1:]))}",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        log_level="ERROR",
        output_path=str(written),
    )


def decoding_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes from which no convolution can be reached, other than convolutions."""
    needed: set[str] = set()
    names = []
    for node in reversed(model.graph.node):
        if node.op_type in {"Conv", "ConvTranspose"} or needed.intersection(node.output):
            needed.update(node.input)
        else:
            names.append(node.name)
    return names


def summary(layers: Iterable[LayerPrecision]) -> str:
    """Precisions as text: ``int8``, or ``54 int8 + 17 float32``."""
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.precision] = counts.get(layer.precision, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return " + ".join(f"{count} {precision}" for precision, count in sorted(counts.items(), key=lambda kv: -kv[1]))
