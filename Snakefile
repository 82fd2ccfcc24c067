# The graph of runs: videos -> runs of Table 2 -> tables and figures. `make reproduce` walks it here;
# on a cluster, --profile profiles/slurm or profiles/kubernetes makes each run a job of its own.
# Each run is a notebook executed with checked parameters. Executed training notebooks are logs, so
# that a failed run keeps its own; checkpoints lie beside the outputs, so that it resumes.

import json

from snakemake.logging import logger

from s2dlib.presets import PRESETS, VARIANTS
from s2dlib.report.progress import show_progress
from s2dlib.training.trials import study_of

# The defaults are `make reproduce`; `make study` is every row over five seeds, with all trials;
# `make grid` is every row over three seeds on GRID, whose index `s2d index grid` has made.
PRESET = config.get("preset", "synthetic")
RESULTS = config.get("results", "reproduced")  # all is written here; the reference stays as it came
DRAWN = PRESET.startswith("synthetic")
STAGED = "joint" in PRESETS[PRESET].recipes  # else the paper's words: one stage, from published weights
RUNS = f"{RESULTS}/runs/{PRESET}"
SHOWN = f"{RESULTS}/notebooks" + ("" if PRESET == "synthetic" else f"/{PRESET}")
TABLE2 = "table2" if PRESET == "synthetic" else f"table2-{PRESET}"
CSV = config.get("csv", PRESETS[PRESET].data.csv)
OTHER = f"-p csv ../{CSV} " if "csv" in config else ""  # another index than the preset's own
SEEDS = range(config.get("seeds", 3))  # of the full model and of each network alone
OTHERS = range(config.get("other_seeds", 1))  # of the other rows of Table 2
ROWS = [f"{row}-{s}" for row in VARIANTS for s in (SEEDS if row in ("a0", "a1", "a2") else OTHERS)]
STUDIED = range(config.get("trial_seeds", 0))  # of what is changed about the full model, below
CONTROLLED = OTHERS if len(STUDIED) else []  # of the models that know where to look, or never look
SWEPT = range(min(1, len(STUDIED)))  # of each value of a sweep
CLOSEUPS = "-p train_split closeups" if DRAWN else ""  # where DNet learns to read
# Published weights for the backbones, a name of torchvision's or a file: for large networks.
PUBLISHED = {
    net: f"-p {net}_weights {config[net]}" if net in config else "" for net in ("snet", "dnet")
}
NETWORKS = {"snet": "a2", "dnet": "a1"}  # and the row that does without it
# What is changed about the full model, each a run <preset>-<trial>-<seed>; the best window is
# chosen by the rule `constant`, and one without words is a stage of another.
STUDY = study_of(PRESET)
CHANGED = STUDY.trials | STUDY.ceiling | STUDY.sweeps | STUDY.windows
TRIED = [f"{name}-{seed}" for name, trial in STUDY.trials.items() if trial.words for seed in STUDIED]
TRIED += [f"{name}-{seed}" for name in STUDY.sweeps for seed in SWEPT]
TRIED += [f"{name}-0" for name in STUDY.windows for seed in SWEPT]
TRIED += [f"{name}-{seed}" for name in STUDY.controls for seed in CONTROLLED]


wildcard_constraints:
    row="|".join(VARIANTS),
    trial="|".join(CHANGED) or "none",
    seed=r"\d+",


# A training step takes and gives back the same large buffers; kept by the process, not returned to
# the system each time, they make a step on the CPU 1.5 times faster. One thread a run, many runs.
shell.prefix(
    "export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=1 MALLOC_TOP_PAD_=100000000"
    " MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000; "
)


rule all:
    input:
        # Weights too: a clone has our records, which results=results must not take for its own runs.
        weights=expand(f"{RUNS}-{{run}}/model.safetensors", run=[*ROWS, *TRIED]),
        shown=expand(
            f"{SHOWN}/{{name}}.ipynb",
            name=[
                *("00_data", "04_table2", "05_figure4", "09_looking"),
                *(("01_detail_sampler", "01_figure2", "03_cost", "06_tables") if DRAWN else ()),
                *(("07_predict", "08_inspector", "10_latency") if DRAWN else ()),
            ],
        ),
    localrule: True
    run:
        from s2dlib.report import records, tables

        print(f"\nWritten, from the runs in {RESULTS}/runs/:")
        for path in [*input.shown, f"{RESULTS}/tables/{TABLE2}.md", f"{RESULTS}/figures/{TABLE2}.png"]:
            print(f"  {path}")
        if RESULTS != "results" and not OTHER:
            fresh, reference = (records.read_records(f"{top}/runs") for top in (RESULTS, "results"))
            table = tables.reproduction(reference, fresh, PRESET)
            tables.write_table(table, f"{RESULTS}/tables/reproduction-{PRESET}")
            print(f"  {RESULTS}/tables/reproduction-{PRESET}.md, which is:\n")
            print(tables.as_text(table).to_string(index=False))


onstart:
    show_progress(logger, len(workflow.dag))


def execute(notebook, executed, arguments):
    """The command that executes a notebook; its errors are all that it prints."""
    return f"s2d run --quiet notebooks/{notebook}.ipynb {{{executed}}} {arguments}"


def show(notebook, arguments=""):
    """The command of a notebook to be read, which writes tables and figures to RESULTS."""
    return execute(notebook, "output", f"-p results ../{RESULTS} {arguments}")


if DRAWN:

    rule videos:
        output:
            CSV,
        threads: workflow.cores
        shell:
            f"s2d synthetic --dataset {PRESET} > /dev/null"  # its path; the bar is elsewhere


def train(name, arguments):
    """The command of one training run, whose record and weights are the rule's outputs."""
    run = f"-p results ../{RESULTS} -p preset {PRESET} {OTHER}"
    run += f"-p name {PRESET}-{name} -p seed {{wildcards.seed}}"
    return execute("02_train", "log", f"{run} {arguments}")


rule snet_alone:  # the start of SNet in every row
    input:
        CSV,
    output:
        f"{RUNS}-snet-{{seed}}/model.safetensors",
        f"{RUNS}-snet-{{seed}}/metrics.json",
    log:
        f"{RUNS}-snet-{{seed}}/train.ipynb",
    resources:
        gpu=1,
    priority: 2
    shell:
        train("snet-{wildcards.seed}", f"-p variant a1 -p recipe snet -p test_split val {PUBLISHED['snet']}")


rule dnet_closeups:  # DNet learns the details, large and centred, or those of what moves
    input:
        CSV,
    output:
        f"{RUNS}-closeups-{{seed}}/model.safetensors",
        f"{RUNS}-closeups-{{seed}}/metrics.json",
    log:
        f"{RUNS}-closeups-{{seed}}/train.ipynb",
    resources:
        gpu=1,
    priority: 3
    shell:
        train(
            "closeups-{wildcards.seed}",
            f"-p variant a2 -p recipe closeups {CLOSEUPS} -p test_split val {PUBLISHED['dnet']}",
        )


rule dnet_zoom:  # then to read them at any zoom: the start of DNet in every row
    input:
        rules.dnet_closeups.output[0],
    output:
        f"{RUNS}-zoom-{{seed}}/model.safetensors",
        f"{RUNS}-zoom-{{seed}}/metrics.json",
    log:
        f"{RUNS}-zoom-{{seed}}/train.ipynb",
    resources:
        gpu=1,
    priority: 3
    shell:
        train(
            "zoom-{wildcards.seed}",
            f"-p variant a2 -p recipe zoom {CLOSEUPS} -p test_split val -p dnet_from ../{{input}}",
        )


def row_starts(wildcards):
    """The weights that a row's networks start from, by the name of its parameter."""
    stages = {"snet": "snet", "dnet": "zoom"} if STAGED else {}
    return {
        f"{net}_from": f"{RUNS}-{stage}-{wildcards.seed}/model.safetensors"
        for net, stage in stages.items()
        if wildcards.row != NETWORKS[net]
    }


rule row:  # one row of Table 2, all together or what it keeps of the model
    input:
        CSV,
        unpack(row_starts),
    output:
        f"{RUNS}-{{row}}-{{seed}}/model.safetensors",
        f"{RUNS}-{{row}}-{{seed}}/metrics.json",
    log:
        f"{RUNS}-{{row}}-{{seed}}/train.ipynb",
    params:
        start=lambda wildcards, input: " ".join(
            [
                *(f"-p {key} ../{path}" for key, path in input.items() if key),
                *([] if STAGED else ["-p recipe paper -p test_split val"]),
                *(PUBLISHED[n] for n, row in NETWORKS.items() if not STAGED and wildcards.row != row),
            ]
        ),
    resources:
        gpu=1,
    priority: 1
    shell:
        train("{wildcards.row}-{wildcards.seed}", "-p variant {wildcards.row} {params.start}")


def starts(wildcards):
    """The weights that a trial's networks start from, by the name of its parameter."""
    start = zip(("snet_from", "dnet_from"), CHANGED[wildcards.trial].start, strict=True)
    weights = f"{RUNS}-{{}}-{wildcards.seed}/model.safetensors"
    return {key: weights.format(name) for key, name in start if name}


def overrides(fields):
    """The fields of a trial as a parameter of the notebook."""
    return f"-p overrides '{json.dumps(fields)}'" if fields else ""


rule trial:  # the full model with one thing changed
    input:
        CSV,
        unpack(starts),
    output:
        f"{RUNS}-{{trial}}-{{seed}}/model.safetensors",
        f"{RUNS}-{{trial}}-{{seed}}/metrics.json",
    log:
        f"{RUNS}-{{trial}}-{{seed}}/train.ipynb",
    params:
        what=lambda wildcards, input: " ".join(
            [
                "-p variant {0.variant} -p recipe {0.recipe}".format(CHANGED[wildcards.trial]),
                *(f"-p {key} ../{path}" for key, path in input.items() if key),
                *(
                    PUBLISHED[net]
                    for net, run in zip(NETWORKS, CHANGED[wildcards.trial].start, strict=True)
                    if not run and CHANGED[wildcards.trial].variant != NETWORKS[net]
                ),
                overrides(CHANGED[wildcards.trial].fields),
            ]
        ),
    resources:
        gpu=1,
    shell:
        train("{wildcards.trial}-{wildcards.seed}", "{params.what}")


rule constant:  # no sampler: the window that was best on the validation split
    input:
        snet=rules.snet_alone.output[0],
        dnet=rules.dnet_zoom.output[0],
        tried=expand(f"{RUNS}-{{window}}-0/metrics.json", window=STUDY.windows),
    output:
        f"{RUNS}-constant-{{seed}}/model.safetensors",
        f"{RUNS}-constant-{{seed}}/metrics.json",
    log:
        f"{RUNS}-constant-{{seed}}/train.ipynb",
    resources:
        gpu=1,
    run:
        tried = dict(zip(STUDY.windows, input.tried))
        top1 = {name: json.load(open(path))["val_top1"] for name, path in tried.items()}
        best = max(top1, key=top1.get)
        start = "-p variant b3 -p snet_from ../{input.snet} -p dnet_from ../{input.dnet} "
        what = start + overrides(STUDY.windows[best].fields).replace("{", "{{").replace("}", "}}")
        shell(train("constant-{wildcards.seed}", what))


rule data:
    input:
        CSV,
    output:
        f"{SHOWN}/00_data.ipynb",
    shell:
        show("00_data", f"-p preset {PRESET} {OTHER}-p max_files 600")


rule sampler:
    input:
        CSV,
    output:
        f"{SHOWN}/01_detail_sampler.ipynb",
    shell:
        show("01_detail_sampler", f"-p preset {PRESET}")


rule figure2:
    input:
        f"{RUNS}-a0-0/model.safetensors",
    output:
        f"{SHOWN}/01_figure2.ipynb",
    shell:
        show("01_figure2", f"-p run ../{RUNS}-a0-0")


rule cost:
    output:
        f"{SHOWN}/03_cost.ipynb",
    shell:
        show("03_cost", f"-p rows_of '[mini-kinetics, {PRESET}]'")


rule latency:
    output:
        f"{SHOWN}/10_latency.ipynb",
    threads: workflow.cores  # nothing beside it
    resources:
        gpu=1,
    shell:
        "OMP_NUM_THREADS={threads} " + show("10_latency")


rule table2:
    input:
        expand(f"{RUNS}-{{run}}/model.safetensors", run=[*ROWS, *TRIED]),
    output:
        f"{SHOWN}/04_table2.ipynb",
    shell:
        show("04_table2", f"-p preset {PRESET}")


rule figure4:
    input:
        expand(f"{RUNS}-{{run}}/model.safetensors", run=["a0-0", "a1-0"]),
    output:
        f"{SHOWN}/05_figure4.ipynb",
    shell:
        show("05_figure4", f"-p run ../{RUNS}-a0-0")


rule predict:  # one test clip, as anyone's video
    input:
        CSV,
        f"{RUNS}-a0-0/model.safetensors",
    output:
        f"{SHOWN}/07_predict.ipynb",
    shell:
        execute(
            "07_predict",
            "output",
            f"-p video ../data/{PRESET}/test/00007.mp4 -p checkpoint ../{RUNS}-a0-0",
        )


rule inspector:
    input:
        CSV,
        f"{RUNS}-a0-0/model.safetensors",
    output:
        f"{SHOWN}/08_inspector.ipynb",
    shell:
        execute("08_inspector", "output", f"-p runs '[../{RESULTS}/runs]' -p csv ../{CSV}")


rule looking:
    input:
        expand(f"{RUNS}-{{run}}/model.safetensors", run=[*ROWS, *TRIED]),
    output:
        f"{SHOWN}/09_looking.ipynb",
    shell:
        show("09_looking", f"-p preset {PRESET}")


rule other_tables:
    input:
        expand(f"{RUNS}-{{run}}/model.safetensors", run=ROWS),
    output:
        f"{SHOWN}/06_tables.ipynb",
    shell:
        show("06_tables", f"-p run ../{RUNS}-a0-0")
