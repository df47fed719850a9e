"""One of two processes of a quantization-aware training: ``qat_worker.py FOLDER``, started by a test."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from small_qat import QUICK, calibrated_model, float_model, gradients_of_first_batch
from small_training import SIZE

from repq.data import load_dataset
from repq.identity import hash_tensors
from repq.quant import scale_table
from repq.quant.qat import train_quantized
from repq.train import joined_processes


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    train_set, val_set = (load_dataset(folder / "set" / "data.yaml", split) for split in ("train", "val"))
    with joined_processes("cpu") as (processes, _):
        torch.save(gradients_of_first_batch(train_set, processes), folder / f"gradients{processes.rank}.pt")
        # Different weights and scales: the first process's count.
        start = calibrated_model(float_model(seed=processes.rank))
        outcome = train_quantized(
            start, float_model(), train_set, val_set, SIZE, QUICK, state_path=folder / "state.safetensors"
        )
        scales = [float(pair.input.scale) for pair in scale_table(outcome.model).values()]
        (folder / f"weights{processes.rank}.txt").write_text(f"{hash_tensors(outcome.model.state_dict())} {scales}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
