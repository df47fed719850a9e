#!/usr/bin/env bash
# Everything of repq that needs a GPU, in one call of about ten minutes: its tests, training with AMP, steps of QAT, the
# whole way with torch on the GPU, and TensorRT in FP32, FP16 and INT8. What a step prints lies in OUT/STEP.log, figures
# beside it; a step that fails does not stop the others, and the summary says which did.
#
#     benchmarks/gpu.sh OUT        # with torch for CUDA, TensorRT and `pip install -e '.[gpu,tensorrt,dev]'`
set -uo pipefail
out=$(mkdir -p "${1:?the folder for the results}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
failed=0

step() { # NAME SECONDS COMMAND…
  local name=$1 limit=$2 started=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  local code=$?
  echo "$name: exit $code, $((SECONDS - started)) s: $*" | tee -a "$out/summary.txt"
  [ $code = 0 ] || failed=1
}

: >"$out/summary.txt"
nvidia-smi >"$out/nvidia-smi.log" 2>&1 || echo "nvidia-smi does not run here" | tee -a "$out/summary.txt"
step tests 120 "$python" -m pytest -q -m gpu -n 8
step step-n 60 "$python" benchmarks/train_step.py -o "$out/step-n.json"
step step-s 60 "$python" benchmarks/train_step.py --model yolov6s --imgsz 640 -o "$out/step-s.json"
step train-n 120 "$python" benchmarks/train_throughput.py --device cuda --rounds 3 -o "$out/train-n.json"
step train-n-dali 90 "$python" benchmarks/train_throughput.py --device cuda --rounds 3 --no-plain --loader opencv \
  --loader dali -o "$out/train-n-dali.json" # needs `pip install -e '.[dali]'`
step qat 60 "$python" benchmarks/qat_step.py --device cuda --rounds 8
step qat-kernel-by-kernel 60 "$python" benchmarks/qat_step.py --device cuda --rounds 4 --no-graphs
step whole-way 120 "$python" -m repq run recipes/quickstart.yaml --device cuda --set export.float16=true \
  --set build.engines='[onnxruntime]' --work "$out/quickstart"
graphs=$(echo "$out"/quickstart/export/*)
for name in float32 int8 int8_float16; do
  [ -f "$graphs/$name.onnx" ] && step "build-$name" 120 "$python" -m repq build "$graphs/$name.onnx" --engine tensorrt \
    -o "$out/engine-$name"
done
step bench 90 "$python" -m repq bench "$out"/engine-* --imgsz 128 -o "$out/bench"
exit $failed
