"""Find objects in images with the model of this folder: numpy, OpenCV and the model's runtime are all it needs.

    python detect.py IMAGE...

Prints a line for each box: image, class, score, and x1, y1, x2, y2 in pixels of the image. model.json documents every
number that is used here.
"""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np

FOLDER = Path(__file__).resolve().parent


def open_model(about):
    """A function from input to rows, in the runtime that the engine was built for, else in ONNX Runtime."""
    engine = about["engine"] or {}
    opened = in_openvino if engine.get("runtime") == "openvino" else in_onnxruntime
    infer = opened(engine["file"] if engine.get("runtime") in ("openvino", "onnxruntime") else about["onnx"])
    if about["decode"] is None:
        return lambda images: infer([images])[0]
    decode = opened(about["decode"])  # makes rows of what the model gives
    return lambda images: decode(infer([images]))[0]


def in_openvino(file):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}  # else float layers may run in bfloat16
    compiled = openvino.Core().compile_model(str(FOLDER / file), "CPU", settings)
    return lambda inputs: [np.array(output) for output in compiled(inputs).values()]


def in_onnxruntime(file):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on x86 without INT8 dot products
    session = onnxruntime.InferenceSession(str(FOLDER / file), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def letterbox(image, about):
    """Place an image in the network's input; also the scales and offsets in x and y."""
    box, height, width = about["letterbox"], about["input"]["height"], about["input"]["width"]
    room_h, room_w = height - 2 * box["border"], width - 2 * box["border"]
    limit = box["inner_size"] or max(room_h, room_w)
    room_h, room_w = min(room_h, limit), min(room_w, limit)
    h, w = image.shape[:2]
    ratio = min(room_h / h, room_w / w)
    ratio = ratio if box["upscale"] else min(ratio, 1.0)
    inner_h, inner_w = max(1, int(h * ratio + 1e-6)), max(1, int(w * ratio + 1e-6))
    if box["stretch"]:
        inner_h, inner_w = room_h, room_w
    if (inner_h, inner_w) != (h, w):
        shrinks = inner_w < w and inner_h <= h
        how = cv2.INTER_AREA if box["resize"] == "area" and shrinks else cv2.INTER_LINEAR
        image = cv2.resize(image, (inner_w, inner_h), interpolation=how)
    middle = box["placement"] == "centre"
    top = (height - inner_h) // 2 if middle else box["border"]
    left = (width - inner_w) // 2 if middle else box["border"]
    canvas = np.full((height, width, 3), box["pad"], np.uint8)
    canvas[top : top + inner_h, left : left + inner_w] = image
    return canvas, (inner_w / w, inner_h / h), (left, top)


def as_input(canvas, about):
    """Pixels (H, W, 3) as OpenCV reads them, blue first, to the network's input (1, 3, H, W)."""
    given = about["input"]
    pixels = canvas if given["colours"] == "bgr" else canvas[..., ::-1]
    values = (pixels.astype(np.float32) / np.float32(given["divisor"]) - np.float32(given["mean"])) / np.float32(
        given["std"]
    )
    batch = np.ascontiguousarray(values.transpose(2, 0, 1)[None])
    return np.repeat(batch, given["batch"] or 1, axis=0)


def boxes_of(output, about):
    """The output for one image to boxes (k, 6): x1, y1, x2, y2 in pixels of the input, score, class; best first."""
    form, limits = about["output"], about["thresholds"]
    rows = output.T if form["columns_first"] else output
    scores = rows[:, form["scores"] : form["scores"] + len(about["classes"])]
    if form["objectness"] is not None:
        scores = scores * rows[:, form["objectness"], None]
    label = scores.argmax(axis=1)
    score = scores[np.arange(len(scores)), label]
    corners = rows[:, form["boxes"] : form["boxes"] + 4].astype(np.float64)
    if form["box_form"] == "centre":
        corners = np.hstack([corners[:, :2] - corners[:, 2:] / 2, corners[:, :2] + corners[:, 2:] / 2])
    iou = 1.0 if form["one_per_object"] else limits["iou"]
    likely = (score > limits["confidence"]) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    kept = []
    for number in np.unique(label[likely]):
        mine = np.flatnonzero((label == number) & likely)
        mine = mine[np.argsort(-score[mine], kind="stable")]
        rectangles = np.hstack([corners[mine, :2], corners[mine, 2:] - corners[mine, :2]])
        ranks = np.arange(len(mine), 0, -1, dtype=np.float32)  # equal scores stay in order
        kept += list(mine[np.array(cv2.dnn.NMSBoxes(rectangles, ranks, 0.0, iou), int).reshape(-1)])
    kept = sorted(kept, key=lambda row: (-score[row], row))[: limits["max_detections"]]
    return np.column_stack([corners[kept], score[kept], label[kept]])


def main():
    about = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    infer = open_model(about)
    for name in sys.argv[1:]:
        image = cv2.imread(name, cv2.IMREAD_COLOR)
        if image is None:
            sys.exit(f"cannot read {name}")
        canvas, scale, offset = letterbox(image, about)
        found = boxes_of(infer(as_input(canvas, about))[0], about)
        h, w = image.shape[:2]
        found[:, :4] = ((found[:, :4] - np.tile(offset, 2)) / np.tile(scale, 2)).clip(0, (w, h, w, h))
        for x1, y1, x2, y2, score, label in found:
            print(f"{name}\t{about['classes'][int(label)]}\t{score:.5f}\t{x1:.2f}\t{y1:.2f}\t{x2:.2f}\t{y2:.2f}")


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is not yet written
        sys.exit(141)
