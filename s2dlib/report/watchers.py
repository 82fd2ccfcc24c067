"""Watchers of a training (fit): curves in a notebook's cell, and TensorBoard's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


class LiveCurves:
    """A figure in the cell of a notebook that trains: accuracy and strides, a point more an epoch.

    Strides (theta's delta, on the validation clips) are those of a model whose theta is learned;
    for any other the loss takes their place.
    """

    def __init__(self) -> None:
        import matplotlib.pyplot as plt
        import seaborn as sns
        from IPython.display import DisplayHandle

        sns.set_theme(style="ticks", palette="colorblind")
        self.figure, self.axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
        plt.close(self.figure)  # else the cell shows it once more at its end
        self.handle, self.shown = DisplayHandle(), False

    def __call__(self, history: list[dict[str, float]]) -> None:
        from s2dlib.report.plots import curves  # with seaborn

        if not history:
            return
        table = pd.DataFrame(history)
        strides = [c for axis in "tyx" if (c := f"val_delta_{axis}_mean") in table]
        top1 = [c for c in ("train_top1", "val_top1") if c in table]
        for ax in self.axes:
            ax.clear()
        curves(self.axes[0], table, top1, "top-1 (%)")
        units = "stride (frames, pixels)" if strides else "loss"
        curves(self.axes[1], table, strides or ["train_loss"], units)
        self.handle.display(self.figure, update=self.shown)
        self.shown = True


class TensorBoard:
    """A writer of the history to run_dir/tensorboard; a run that goes on adds a file.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("expected TensorBoard: pip install s2dlib[tensorboard]") from error
        self.writer = SummaryWriter(str(Path(run_dir) / "tensorboard"))
        self.written: int | None = None  # rows of the history; those of before are in another file

    def __call__(self, history: list[dict[str, float]]) -> None:
        for row in history[len(history) if self.written is None else self.written :]:
            for name, value in row.items():
                self.writer.add_scalar(name.replace("_", "/", 1), value, int(row["epoch"]))
        self.written = len(history)
        self.writer.flush()
