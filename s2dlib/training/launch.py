"""Training in several processes that torchrun starts.

python -m s2dlib.training.launch RUN_DIR   # one process of several
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from s2dlib.config import CONFIG_FILE, WEIGHTS, DataConfig, ModelConfig, TrainConfig
from s2dlib.data.dataset import VideoDataset
from s2dlib.model import S2DNet, build_model
from s2dlib.training.checkpoints import only_writer, read_history, write_weights
from s2dlib.training.distributed import rank_and_world_size
from s2dlib.training.loop import Watcher, check_batches, fit, show
from s2dlib.training.run_config import begin_run, describe_run, read_json

log = logging.getLogger(__name__)
START = "start.safetensors"  # the weights that the processes of a run start from


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
    watchers: Sequence[Watcher] = (),
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
    with only_writer(run_dir):
        begin_run(run_dir, describe_run(model, train_set, val_set, config, seed))
        write_weights(model, run_dir / START)

    def show_history(line: str) -> None:
        if line.startswith("epoch "):  # the history has its row
            show(watchers, read_history(run_dir))

    show(watchers, read_history(run_dir))
    launch([str(run_dir), "--device", device.type], processes, show_history)
    model.load_state_dict(load_file(run_dir / WEIGHTS))
    history = read_history(run_dir)
    show(watchers, history)
    return history


def launch(arguments: list[str], processes: int, on_line: Callable[[str], None]) -> None:
    """Run this module in processes that torchrun starts; log each line, and hand it to on_line.

    Raises:
        RuntimeError: one of them failed; with the last lines.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "s2dlib.training.launch", *arguments]
    threads = max(1, torch.get_num_threads() // processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"PYTHONUNBUFFERED": "1"}
    last: deque[str] = deque(maxlen=40)
    errors = []  # as main words them; torchrun says more, and later
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        try:
            for line in child.stdout or ():
                last.append(line)
                errors += [line] if line.startswith("error: ") else []
                log.info(line.rstrip("\n"))
                on_line(line)
        except BaseException:  # Ctrl-C in the notebook
            child.terminate()
            raise
    if child.returncode:
        text = "".join(errors or last).strip()
        raise RuntimeError(f"training in {processes} processes failed: {text}")


def main() -> None:
    """Train what a run's config.json says, as one of the processes of torchrun, or alone."""
    parser = argparse.ArgumentParser(prog="python -m s2dlib.training.launch", description=__doc__)
    parser.add_argument("run_dir", type=Path, help=f"with {CONFIG_FILE} and {START}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    level = logging.INFO if rank_and_world_size()[0] == 0 else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stdout, format="%(message)s")
    try:
        fit_run(args.run_dir, device)
    except (ValueError, RuntimeError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def fit_run(run_dir: Path, device: torch.device) -> None:
    """loop.fit of what fit_in_processes has written to a run's folder.

    Raises:
        FileNotFoundError: there is no config.json, or no start.safetensors.
    """
    config = read_json(run_dir / CONFIG_FILE)
    if "train" not in config:
        raise FileNotFoundError(
            f"{run_dir / CONFIG_FILE}: expected what fit_in_processes writes; call that"
        )
    model, data = build_model(ModelConfig(**config["model"])), DataConfig(**config["data"])
    model.load_state_dict(load_file(run_dir / START))
    val_data = replace(data, **config["val_data"])
    sets = (
        VideoDataset(data, config["train_split"], train=True, seed=config["data_seed"]),
        VideoDataset(val_data, config["val_split"], train=False),
    )
    train, seed = TrainConfig(**config["train"]), config["seed"]
    fit(model, *sets, train, run_dir=run_dir, seed=seed, device=device)


if __name__ == "__main__":
    main()
