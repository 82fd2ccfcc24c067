"""What the terminal shows while Snakemake walks the graph: a line a job that ended, and a bar.

The rest of what Snakemake says is in its own log, below .snakemake/log. Every call of Snakemake
imports this: without torch.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from s2dlib.config import METRICS_FILE

BAR = "{bar:30} {n}/{total} jobs, {elapsed} so far, about {remaining} left"


@dataclass(frozen=True)
class Job:
    """A job that has begun, as Snakemake announces it."""

    rule: str
    outputs: list[Path]
    begun: float = field(default_factory=time.monotonic)  # seconds

    def __str__(self) -> str:
        """The name of its run or notebook, top-1 (%) of a run, and how long it took."""
        path = self.outputs[0] if self.outputs else Path(self.rule)
        metrics = [p for p in self.outputs if p.name == METRICS_FILE and p.is_file()]
        name = {".ipynb": path.stem, ".safetensors": path.parent.name}.get(path.suffix, self.rule)
        top1 = f"top-1 {json.loads(metrics[0].read_text())['top1']:5.1f}" if metrics else ""
        return f"{name:32} {top1:11} {time.monotonic() - self.begun:6.0f} s"


class ProgressHandler(logging.Handler):
    """Shows Snakemake's records: a line a job that ended, warnings and errors, a bar over all."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total, self.n_done = total, 0
        self.jobs: dict[int, Job] = {}
        # smoothing=0: by the mean of all jobs so far; disable=None: no bar without a terminal
        self.bar = tqdm(
            total=total, bar_format=BAR, smoothing=0, mininterval=0, leave=False, disable=None
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record; `event` is one of Snakemake's LogEvent, or missing."""
        said = vars(record)
        match said.get("event"):
            case "job_info":
                outputs = [Path(path) for path in said["output"]]
                self.jobs[said["jobid"]] = Job(said["rule_name"], outputs)
                if not outputs:  # the last one, which prints
                    self.bar.close()
            case "job_finished":
                self.n_done += 1
                if (job := self.jobs[said["job_id"]]).outputs:
                    self._print(f"{self.n_done:3}/{self.total}  {job}")
                self.bar.update()
            case "job_error":
                where = f"; its log: {', '.join(said['log'])}" if said["log"] else ""
                self._print(f"FAILED   {self.jobs[said['jobid']]}{where}")
            case None | "error" if record.levelno >= logging.WARNING:
                self._print(record.getMessage())

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()
        super().close()

    def _print(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)


def show_progress(logger: logging.Logger, total: int) -> None:
    """Put a ProgressHandler where Snakemake would print; not if a plugin of its own does."""
    for handler in list(logger.handlers):
        if handler.name == "DefaultStreamHandler":
            logger.removeHandler(handler)
            logger.addHandler(ProgressHandler(total))
