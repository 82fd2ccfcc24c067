"""The command `s2d`: what people and Snakemake call, behind one name.

Each function below is a subcommand: its docstring is the help, it adds its arguments and returns
what runs them. It is called, and imports what it needs, only once that command is chosen.
"""

from __future__ import annotations

import argparse
import inspect
import io
import itertools
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TITLE = "Synopsis-to-Detail Networks for video recognition (Liang et al., ECCV 2022)."
INSPECTOR = Path("notebooks/08_inspector.ipynb")
ERROR_LINES = 20  # of a failed notebook's traceback, with run --quiet
Call = Callable[[Namespace], int | None]  # returns the exit status


def predict(parser: ArgumentParser) -> Call:
    """Predict the actions in videos, and draw where the model looks.

    One video gets its top-5 before and after DNet, the picture of Fig. 4 and a film of what DNet
    sees beside the clip (VIDEO.s2d.png, VIDEO.s2d.mp4); several, or a folder, get a row each in
    predictions.csv. There the same command goes on after Ctrl-C, and tries again what failed.

    example:
      s2d predict video.mp4 --checkpoint results/models/synthetic
    """
    add = parser.add_argument
    add("videos", nargs="+", type=Path, help="files, or folders of videos")
    add("--checkpoint", required=True, help="folder of a run or of a shared model, or a hub id")
    add("--out", type=Path, default=Path("predictions"), help="folder to write to")
    add("--top", type=int, default=5, help="actions listed")
    add("--film", choices=("mp4", "gif"), default="mp4", help="kind of the film")
    add("--pictures", action="store_true", help="of each of several videos, too")
    words = "without progress, after which a video is given up; default: as in training"
    add("--timeout", type=float, metavar="SECONDS", help=words)
    words = "of many that are read while the network computes; default: cores - 1, at most 8"
    add("--workers", type=int, metavar="N", help=f"videos at a time, {words}")
    add("--batch", type=int, default=1, metavar="N", help="videos that it computes at once")

    def call(args: Namespace) -> int:
        from s2dlib.apps.predict import predict_videos

        return predict_videos(args)

    return call


def inspect_(parser: ArgumentParser) -> Call:
    """Move theta by hand: JupyterLab with notebooks/08_inspector.ipynb, all of whose cells to run.

    example:
      s2d inspect -- --no-browser --port 8890
    """
    parser.add_argument("options", nargs="*", help="options of JupyterLab, after --")

    def call(args: Namespace) -> None:
        if not INSPECTOR.is_file():
            raise FileNotFoundError(f"{INSPECTOR}: no such notebook; go to the repository's root")
        command = [sys.executable, "-m", "jupyterlab", str(INSPECTOR), *args.options]
        # this environment's kernel, whatever kernels the user's home has
        os.execve(sys.executable, command, os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"})

    return call


def run(parser: ArgumentParser) -> Call:
    """Run a notebook with parameters, headless; a misspelt parameter is an error.

    02_train trains, 04_table2 makes Table 2, and so on. A parameter annotated `str` is the text as
    typed, any other one is YAML. Paths among them are seen from notebooks/. Where several GPUs are
    visible, runs side by side use different ones.

    example:
      s2d run notebooks/02_train.ipynb out.ipynb -p preset synthetic -p variant b2
    """
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="the executed copy")
    words = "a parameter of the notebook and its value; repeatable"
    pair = ("NAME", "VALUE")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=pair, help=words,
        type=lambda text: text.removeprefix("="),
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print the end of an error alone")

    def call(args: Namespace) -> None:
        from s2dlib.apps.run import parse_parameters, run_notebook

        level = logging.WARNING if args.quiet else logging.INFO
        logging.basicConfig(level=level, format="%(message)s")
        parameters = parse_parameters(args.notebook, args.p)

        import papermill

        try:
            run_notebook(args.notebook, args.output, parameters, quiet=args.quiet)
        except papermill.PapermillExecutionError as error:
            text = str(error)
            if args.quiet:  # below a bar of its caller's
                text = "\n".join(["", *text.splitlines()[-ERROR_LINES:]])
            sys.exit(f"{text}\nerror: {args.notebook} failed; executed so far: {args.output}")

    return call


def index(parser: ArgumentParser) -> Call:
    """Make the CSV of a data set from its owner's annotations; `s2d index FORMAT --help`.

    example:
      s2d index kinetics400 --annotations train.csv val.csv --videos DIR
    """
    from s2dlib.apps.index import add_arguments, index_videos

    add_arguments(parser)
    return index_videos


def prepare(parser: ArgumentParser) -> Call:
    """Write working copies of videos that are larger than training needs, and their CSV.

    A copy holds every frame that the preset's frame_stride leaves, at its short_side, and decodes
    fast. A video that cannot be read is named; the same command goes on after a kill.

    example:
      s2d prepare data/kinetics400/kinetics400.csv --preset kinetics400-x3d-s-m
    """
    from s2dlib.presets import PRESETS

    add = parser.add_argument
    add("csv", type=Path, help="path,label,split of the videos")
    words = "of the training: how clips are chosen"
    add("--preset", required=True, choices=PRESETS, metavar="PRESET", help=words)
    add("--out", type=Path, help="folder to write to; default: one beside the CSV")

    def call(args: Namespace) -> int:
        from s2dlib.apps.prepare import prepare_videos

        return prepare_videos(args.csv, args.preset, args.out)

    return call


def synthetic(parser: ArgumentParser) -> Call:
    """Write the built-in videos, or a share of them to try things on.

    example:
      s2d synthetic --share 0.01 --out data/demo
    """
    from s2dlib.data.files import check_output
    from s2dlib.data.synthetic import DATASETS, write_dataset

    parser.add_argument("--dataset", choices=DATASETS, default="synthetic")
    parser.add_argument("--out", type=Path, help="folder to write to; else data/<dataset>")
    parser.add_argument("--share", type=float, default=1.0, help="share of the clips to write")

    def call(args: Namespace) -> None:
        out = args.out or Path("data") / args.dataset
        check_output(out / f"{out.name}.csv", made=rb"\Apath,label,label_name,split,t,duration,")
        print(write_dataset(out, args.dataset, args.share))

    return call


def export(parser: ArgumentParser) -> Call:
    """Export a trained model to one file that runs without this package (.pt2, .onnx).

    Inputs: frames, uint8 (B, C, T, H, W), and n_frames, int64 (B,). B is free; the rest is the size
    of the clips that the model was trained on. ONNX needs pip install s2dlib[onnx].

    example:
      s2d export results/models/synthetic model.onnx
    """
    parser.add_argument("checkpoint", help="the folder of a run, or a model's id on the hub")
    parser.add_argument("out", type=Path, help="ends in .pt2 or .onnx")

    def call(args: Namespace) -> None:
        from s2dlib.apps.export import export_model
        from s2dlib.data.files import as_text
        from s2dlib.model import S2DNet

        logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it lists what it leaves as it is
        names = export_model(S2DNet.from_pretrained(args.checkpoint), args.out)
        size = args.out.stat().st_size / 1e6
        print(f"{as_text(args.out)}: {size:.1f} MB; frames, n_frames -> {', '.join(names)}")

    return call


def _mark_values(argv: Sequence[str]) -> Iterator[str]:
    """Begin what follows -p by "=": argparse would take a value -x for an option."""
    words = iter(argv)
    for word in words:
        yield word
        if word == "-p":
            yield from (f"={text}" for text in itertools.islice(words, 2))


COMMANDS = {
    command.__name__.rstrip("_"): command
    for command in (predict, inspect_, run, index, prepare, synthetic, export)
}


def parse(argv: Sequence[str]) -> Namespace:
    """Arguments of `s2d`, without its name; a mistake or --help exits, as argparse does."""
    layout = argparse.RawDescriptionHelpFormatter
    words = "`s2d COMMAND --help` has the arguments and an example of each command."
    parser = ArgumentParser("s2d", description=TITLE, epilog=words)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text, _, example = inspect.cleandoc(command.__doc__ or "").partition("\n\nexample:")
        words, example = text.split("\n")[0], f"example:{example}"
        sub = commands.add_parser(
            name, help=words, description=text, epilog=example, formatter_class=layout
        )
        if name in argv[:1]:
            sub.set_defaults(call=command(sub))
    return parser.parse_args([*_mark_values(argv)] if argv[:1] == ["run"] else argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; every expected failure is one line and a non-zero exit."""
    args = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: any name can be printed
    try:
        return args.call(args) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
