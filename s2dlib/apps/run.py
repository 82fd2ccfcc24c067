"""`s2d run`: a notebook with checked parameters, by papermill, in this very interpreter.

Papermill only warns about an unknown parameter and goes on with the default; here it is refused, as
is a value that is not of the annotated type.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from ipykernel.kernelspec import write_kernel_spec
from traitlets.config import Config

from s2dlib.data.files import as_text, check_output

TYPES: dict[str, tuple[type, ...]] = {t.__name__: (t,) for t in (str, int, bool, list, dict)}
TYPES["float"] = (float, int)
Known = dict[str, dict[str, Any]]  # parameters of a notebook, as papermill finds them
SOCKET_PATH = 107  # bytes a Unix socket's path may have; the name of the socket takes some 20
SILENT = ["--IPKernelApp.log_level=CRITICAL"]  # a kernel calls the signal that ends it an error


class Loader(yaml.SafeLoader):
    """Reads YAML 1.1, but 1e-3 is a number, and integers are decimal: 010 is 10, 12:30 a text."""

    def construct_integer(self, node: yaml.ScalarNode) -> int | str:
        """The number, where there are digits alone."""
        text = str(self.construct_scalar(node))
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else text


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads."""


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_integer)
for kind in (Loader, Dumper):
    exponent = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z")
    kind.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))


def run_notebook(
    notebook: str | Path, output: str | Path, parameters: dict[str, Any], *, quiet: bool = False
) -> Path:
    """Execute a notebook in its own folder and keep the executed copy, also when a cell fails.

    Args:
        notebook: its first code cell is tagged `parameters`.
        output: the executed copy, written cell by cell; its folder is made.
        parameters: values for names of that cell.
        quiet: without a bar of cells.

    Returns: the path of the executed copy. A failing cell or a killed kernel raises.

    Raises:
        ValueError: a name that the cell does not have, a value not of its annotated type, an output
            that does not end in .ipynb, is the notebook itself or no executed copy (check_output).
    """
    notebook, output = Path(notebook), Path(output)
    known = inspect_parameters(notebook)
    check_parameters(notebook, parameters, known)
    for path in (notebook, output):
        if not _is_utf8(str(path)):
            raise ValueError(f"{as_text(path)}: expected a path in UTF-8, which the copy will hold")
    if output.suffix != ".ipynb":  # papermill writes "-" to stdout
        raise ValueError(f"{as_text(output)}: expected a name that ends in .ipynb")
    end = re.escape(json.dumps(output.name, ensure_ascii=False)[1:].encode())
    check_output(output, [notebook], rb'"output_path": "(?:[^"\n]*/)?' + end)
    output.parent.mkdir(parents=True, exist_ok=True)
    import papermill

    with tempfile.TemporaryDirectory(prefix="s2d") as folder:
        # JUPYTER_PATH comes before the kernels of the user's home and of the environment
        write_kernel_spec(Path(folder) / "kernels" / "python3", extra_arguments=SILENT)
        ipc = os.name == "posix" and len(folder) + 20 < SOCKET_PATH  # no ports, so no clashes
        transport = {"transport": "ipc", "connection_file": f"{folder}/k.json"} if ipc else {}
        command = command_text(notebook, output, parameters, known)
        gpu = reserve_gpu(wants_one_gpu(notebook, known, parameters))
        with gpu as gpus, patch.dict(os.environ, gpus, S2D_COMMAND=command, JUPYTER_PATH=folder):
            papermill.execute_notebook(
                _no_template(notebook),
                _no_template(output),
                parameters,
                kernel_name="python3",
                cwd=notebook.parent,
                log_output=True,
                progress_bar=sys.stderr.isatty() and not quiet,
                start_timeout=120,  # torch imports slowly from a cold disk
                config=Config(KernelManager=transport),
            )
    return output


def inspect_parameters(notebook: Path) -> Known:
    """The parameters of a notebook by name, each with its annotation and default as text."""
    if not notebook.is_file():
        words = "no such notebook; they live in notebooks/"
        raise FileNotFoundError(f"{as_text(notebook)}: {words}")
    import papermill  # takes seconds, mostly a grammar of jsonschema's: not in vain

    return papermill.inspect_notebook(_no_template(notebook))


def _no_template(path: Path) -> str:
    """A path for papermill, which fills in parameters between braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def parse_parameters(notebook: Path, texts: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Values of a notebook's parameters, from their texts as typed."""
    known = inspect_parameters(notebook)
    values: dict[str, object] = {}
    for name, text in texts:
        annotation = annotated_type(name, known)
        try:
            values[name] = parse_value(text, annotation)
        except ValueError as error:
            raise ValueError(
                f"parameter {name}: expected {annotation or 'YAML'}, {error}"
            ) from error
    return values


def annotated_type(name: str, known: Known) -> str:
    """The key of TYPES by which a parameter is annotated; "": it is not, or by something else."""
    annotation = known[name]["inferred_type_name"].split("[")[0] if name in known else ""
    return annotation if annotation in TYPES else ""


def check_parameters(notebook: Path, parameters: dict[str, Any], known: Known) -> None:
    """Raise ValueError for a name unknown, or a value not of its type or not for a notebook."""
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(
            f"{notebook.name} has no parameter {', '.join(unknown)}; "
            f"its parameters are {', '.join(known) or 'none (no cell is tagged parameters)'}"
        )
    for name, value in parameters.items():
        expected = annotated_type(name, known)
        if expected and type(value) not in TYPES[expected]:
            raise ValueError(f"parameter {name}: expected {expected}, got {value!r}")
        try:
            kept = _is_utf8(json.dumps(value, ensure_ascii=False))
        except TypeError:  # a date
            kept = False
        if not kept:
            words = "text in UTF-8, numbers, and lists and dicts of these"
            raise ValueError(f"parameter {name}: expected {words}, got {value!a}")


def _is_utf8(text: str) -> bool:
    """Whether a text is without bytes of another encoding, which Python keeps as surrogates."""
    return not re.search("[\ud800-\udfff]", text)


def parse_value(text: str, annotation: str = "") -> object:
    """A parameter of some annotated type, as typed: text stays as it is, all else is YAML."""
    if annotation == "str":
        return text
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no YAML: {' '.join(str(error).split())}") from error


@contextmanager
def reserve_gpu(wanted: bool = True) -> Iterator[dict[str, str]]:
    """Reserve one of several GPUs, so that runs side by side on one machine use different ones.

    A reservation is the lock of a file, which the system releases however this process ends. Where
    every GPU is reserved, one with the fewest runs is shared: nobody waits.

    Yields:
        CUDA_VISIBLE_DEVICES for the kernel; nothing where none is wanted or fewer than two are
        visible.
    """
    gpus = visible_gpus() if wanted else []
    if len(gpus) < 2 or os.name != "posix":
        yield {}
        return
    import fcntl

    folder = Path(tempfile.gettempdir(), f"s2d-gpus-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    for n_sharing, gpu in ((n, gpu) for n in itertools.count() for gpu in gpus):
        with (folder / f"{gpu.replace('/', '-')}.{n_sharing}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield {"CUDA_VISIBLE_DEVICES": gpu}
            return


def visible_gpus() -> list[str]:
    """Entries of CUDA_VISIBLE_DEVICES, else indices of all GPUs; CUDA is not initialised."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        entries = map(str.strip, listed.split(","))
        return list(itertools.takewhile(lambda entry: entry not in ("", "-1"), entries))
    if len(list(Path("/dev").glob("nvidia[0-9]*"))) < 2:  # spares the seconds that torch takes
        return []
    import torch

    return [str(n) for n in range(torch.cuda.device_count())]


def wants_one_gpu(notebook: Path, known: Known, parameters: dict[str, Any]) -> bool:
    """Whether a notebook asks torch for a GPU, and not for several processes, each with its own."""
    default = known["processes"]["default"] if "processes" in known else "1"
    processes = parameters.get("processes", parse_value(default))
    return processes == 1 and "torch.cuda" in notebook.read_text()


def command_text(notebook: Path, output: Path, parameters: dict[str, Any], known: Known) -> str:
    """The shell command that repeats this call; paths relative to here, where they lie below."""
    here = Path.cwd()
    words = ["s2d", "run"]
    for path in (notebook, output):
        words.append(str(path.relative_to(here) if path.is_relative_to(here) else path))
    for name, value in parameters.items():
        words += ["-p", name, value_text(value, annotated_type(name, known))]
    return shlex.join(words)


def value_text(value: object, annotation: str) -> str:
    """What parse_value makes this value of."""
    if annotation == "str":
        return str(value)
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=1e9, sort_keys=False)
    return text.removesuffix("...\n").strip()
