"""Training in several processes that torchrun starts.

python -m s2dlib.training.launch JOB.json   # one process of several
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import subprocess
import sys
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from s2dlib.config import WEIGHTS, DataConfig, ModelConfig, TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.model import S2DNet, build_model
from s2dlib.training.checkpoints import write_weights
from s2dlib.training.distributed import rank_and_world_size
from s2dlib.training.loop import check_batches, fit

log = logging.getLogger(__name__)
LAUNCH = "launch.json"  # what the processes of a run are to do


def launch(job: dict[str, Any], run_dir: Path, processes: int) -> None:
    """Run this module, as `python -m`, in processes that torchrun starts; their lines are logged.

    Raises:
        RuntimeError: one of them failed; with the last lines.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / LAUNCH).write_text(json.dumps(job, indent=1) + "\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "s2dlib.training.launch"]
    command += [str(run_dir / LAUNCH)]
    threads = max(1, torch.get_num_threads() // processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"PYTHONUNBUFFERED": "1"}
    last: deque[str] = deque(maxlen=40)
    errors = []  # as train.main words them; torchrun says more, and later
    with subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as child:
        try:
            for line in child.stdout or ():
                last.append(line)
                errors += [line] if line.startswith("error: ") else []
                log.info(line.rstrip("\n"))
        finally:
            if child.poll() is None and sys.exc_info()[0] is not None:  # Ctrl-C in the notebook
                child.terminate()
    if child.returncode:
        text = "".join(errors or last).strip()
        raise RuntimeError(f"training in {processes} processes failed: {text}")


def fit_in_processes(
    model: S2DNet,
    train_set: VideoDataset,
    val_set: VideoDataset,
    config: TrainConfig,
    *,
    run_dir: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    processes: int = 1,
    tensorboard: bool = False,
) -> list[dict[str, float]]:
    """loop.fit, in processes that torchrun starts, on as many GPUs or on the CPU.

    Other arguments, result and errors as of fit. The model gets the weights.
    """
    run_dir, device = Path(run_dir), torch.device(device)
    check_batches(len(train_set), config, processes)
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(
            f"processes={processes}: expected at most one a GPU, of {torch.cuda.device_count()}"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    start = write_weights(model, run_dir / "start.safetensors")
    job = {"model": asdict(model.config), "train": asdict(config), "seed": seed}
    job |= {"data": asdict(train_set.config), "data_seed": train_set.seed}
    job |= {"train_split": train_set.table["split"][0], "val_split": val_set.table["split"][0]}
    job |= {"val_data": asdict(val_set.config), "start": str(start), "run_dir": str(run_dir)}
    job |= {"device": device.type, "tensorboard": tensorboard}
    launch(job, run_dir, processes)
    model.load_state_dict(load_file(run_dir / WEIGHTS))
    with (run_dir / "history.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"])} for row in rows]


def main() -> None:
    """Train what a job describes, as one of the processes that torchrun started, or alone."""
    parser = argparse.ArgumentParser(prog="python -m s2dlib.training.launch", description=__doc__)
    parser.add_argument(
        "job", type=Path, help="launch.json of a run, as fit(processes=2) leaves it"
    )
    job = json.loads(parser.parse_args().job.read_text())
    device = torch.device(job["device"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    level = logging.INFO if rank_and_world_size()[0] == 0 else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stdout, format="%(message)s")
    try:
        model = build_model(ModelConfig(**job["model"]))
        model.load_state_dict(load_file(job["start"]))
        data, val_data = DataConfig(**job["data"]), DataConfig(**job["val_data"])
        train_set = VideoDataset(data, job["train_split"], train=True, seed=job["data_seed"])
        val_set = VideoDataset(val_data, job["val_split"], train=False)
        fit(
            model,
            train_set,
            val_set,
            TrainConfig(**job["train"]),
            run_dir=job["run_dir"],
            seed=job["seed"],
            device=device,
            tensorboard=job["tensorboard"],
        )
    except (ValueError, RuntimeError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
