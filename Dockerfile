# repq in a container. cpu: torch for the CPU, ONNX Runtime and OpenVINO. gpu: the same with CUDA's torch and TensorRT.
#   docker build --target cpu --tag repq .
#   docker run --rm --volume "$PWD:/work" repq run ptq --weights best.pt --data data.yaml --imgsz 640
# Neither stage has been built by the project's tests, and no image of the second one has run on a GPU.

FROM python:3.11-slim AS source
WORKDIR /src
COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY repq repq

FROM python:3.11-slim AS cpu
RUN --mount=from=source,source=/src,target=/src,rw \
    pip install --no-cache-dir --constraint /src/constraints.txt --index-url https://download.pytorch.org/whl/cpu \
        --extra-index-url https://pypi.org/simple torch \
    && pip install --no-cache-dir --constraint /src/constraints.txt '/src[openvino,report,train]'
RUN useradd --create-home repq
USER repq
WORKDIR /work
ENTRYPOINT ["repq"]
CMD ["--help"]

FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 AS gpu
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/repq
ENV PATH=/opt/repq/bin:$PATH
RUN --mount=from=source,source=/src,target=/src,rw \
    pip install --no-cache-dir --constraint /src/constraints.txt '/src[openvino,report,train,tensorrt,gpu]'
WORKDIR /work
ENTRYPOINT ["repq"]
CMD ["--help"]
