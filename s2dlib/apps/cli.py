"""The command `s2d`: what people and Snakemake call, behind one name.

A command's arguments are added, and what it needs is imported, once that command is chosen:
`s2d --help` waits for no torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

INSPECTOR = Path("notebooks/08_inspector.ipynb")


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="the executed copy")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter of the notebook, and its value as YAML; repeatable",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    import papermill

    from s2dlib.apps.run import parse_value, run_notebook

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        parameters = {name: parse_value(value) for name, value in args.p}
        run_notebook(args.notebook, args.output, parameters)
    except papermill.PapermillExecutionError as error:
        sys.exit(f"{error}\nerror: {args.notebook} failed; executed so far: {args.output}")


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", type=Path, help="files, or folders of videos")
    parser.add_argument(
        "--checkpoint", required=True, help="folder of a run or of a shared model, or a hub id"
    )
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder to write to")
    parser.add_argument("--top", type=int, default=5, help="actions listed")
    parser.add_argument("--film", choices=("mp4", "gif"), default="mp4", help="kind of the film")
    parser.add_argument("--pictures", action="store_true", help="of each of several videos, too")


def predict(args: argparse.Namespace) -> int:
    from s2dlib.apps.predict import predict_videos

    return predict_videos(**{k: v for k, v in vars(args).items() if k != "command"})


def add_index(parser: argparse.ArgumentParser) -> None:
    from s2dlib.apps.index import add_arguments

    add_arguments(parser)


def index(args: argparse.Namespace) -> None:
    from s2dlib.apps.index import index_videos

    index_videos(args)


def add_synthetic(parser: argparse.ArgumentParser) -> None:
    from s2dlib.data.synthetic import DATASETS

    parser.add_argument("--dataset", choices=DATASETS, default="synthetic")
    parser.add_argument("--out", type=Path, help="folder to write to; else data/<dataset>")
    parser.add_argument("--share", type=float, default=1.0, help="share of the clips to write")


def synthetic(args: argparse.Namespace) -> None:
    from s2dlib.data.synthetic import write_dataset

    print(write_dataset(args.out or Path("data") / args.dataset, args.dataset, args.share))


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="the folder of a run, or a model's id on the hub")
    parser.add_argument("out", type=Path, help="ends in .pt2 or .onnx")


def export(args: argparse.Namespace) -> None:
    from s2dlib.apps.export import export_model
    from s2dlib.model import S2DNet

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it says what it does not simplify
    names = export_model(S2DNet.from_pretrained(args.checkpoint), args.out)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {size:.1f} MB; frames, n_frames -> {', '.join(names)}")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("options", nargs="*", help="options of JupyterLab, after --")


def inspect(args: argparse.Namespace) -> None:
    if not INSPECTOR.is_file():
        raise FileNotFoundError(f"{INSPECTOR}: no such notebook; go to the repository's root")
    command = [sys.executable, "-m", "jupyterlab", str(INSPECTOR), *args.options]
    # this environment's kernel, whatever kernels the user's home has
    os.execve(sys.executable, command, os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"})


class Command(NamedTuple):
    """A subcommand of s2d."""

    call: Callable[[argparse.Namespace], int | None]  # returns the exit status
    add_arguments: Callable[[argparse.ArgumentParser], None]
    description: str  # its first line is the help of `s2d --help`
    example: str


COMMANDS = {
    "predict": Command(
        predict,
        add_predict,
        "Predict the actions in videos, and draw where the model looks.\n\n"
        "One video gets its top-5 before and after DNet, the picture of Fig. 4 and a film of what\n"
        "DNet sees beside the clip; several, or a folder, get a row each in predictions.csv.",
        "video.mp4 --checkpoint results/models/synthetic",
    ),
    "inspect": Command(
        inspect,
        add_inspect,
        "Move theta by hand: opens JupyterLab on notebooks/08_inspector.ipynb; run all its cells.",
        "-- --no-browser --port 8890",
    ),
    "run": Command(
        run,
        add_run,
        "Run a notebook with parameters, headless; a misspelt parameter is an error.\n\n"
        "02_train trains, 04_table2 makes Table 2, and so on. Paths among the parameters are seen\n"
        "from notebooks/. Where several GPUs are visible, runs side by side use different ones.",
        "notebooks/02_train.ipynb out.ipynb -p preset synthetic -p variant b2",
    ),
    "index": Command(
        index,
        add_index,
        "Make the CSV of a data set from its owner's annotations; `s2d index FORMAT --help`.",
        "kinetics400 --annotations train.csv val.csv --videos DIR",
    ),
    "synthetic": Command(
        synthetic,
        add_synthetic,
        "Write the built-in videos, or a share of them to try things on.",
        "--share 0.01 --out data/demo",
    ),
    "export": Command(
        export,
        add_export,
        "Export a trained model to one file that runs without this package (.pt2, .onnx).\n\n"
        "Inputs: frames, uint8 (B, C, T, H, W), and n_frames, int64 (B,). B is free; the rest is\n"
        "the size of the clips that the model was trained on. ONNX: pip install s2dlib[onnx]",
        "results/models/synthetic model.onnx",
    ),
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of `s2d`, without its name; a mistake or --help exits, as argparse does."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="s2d",
        description="Synopsis-to-Detail Networks for video recognition.",
        epilog="example:\n  s2d predict video.mp4 --checkpoint results/models/synthetic\n\n"
        "`s2d COMMAND --help` has the arguments and an example of each command.",
        formatter_class=layout,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.description.split("\n")[0],
            description=command.description,
            epilog=f"example:\n  s2d {name} {command.example}",
            formatter_class=layout,
        )
        if name in argv[:1]:
            command.add_arguments(sub)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; every expected failure is one line and a non-zero exit."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return COMMANDS[args.command].call(args) or 0
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
