# The graph of runs: videos -> runs of Table 2 -> tables and figures. `make reproduce` walks it here;
# Snakemake's executor plugins (--executor slurm, kubernetes) take the same file; not tried yet.
# Each run is a notebook executed with checked parameters. Executed training notebooks are logs, so
# that a failed run keeps its own; checkpoints lie beside the outputs, so that it resumes.

from s2dlib.config import VARIANTS

RUNS, SHOWN = "results/runs/synthetic", "results/notebooks"
CSV = "data/synthetic/synthetic.csv"
SEEDS = range(config.get("seeds", 3))  # of the full model and of each network alone
OTHERS = range(config.get("other_seeds", 1))  # of the other rows of Table 2
ROWS = [f"{row}-{s}" for row in VARIANTS for s in (SEEDS if row in ("a0", "a1", "a2") else OTHERS)]


wildcard_constraints:
    row="|".join(VARIANTS),
    seed=r"\d+",


# A training step takes and gives back the same large buffers; kept by the process, not returned to
# the system each time, they make a step on the CPU 1.5 times faster. One thread a run, many runs.
shell.prefix(
    "export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=1 MALLOC_TOP_PAD_=100000000"
    " MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000; "
)


rule all:
    input:
        # Weights too: a clone has our notebooks and records, and must not take them for its own runs.
        weights=expand(f"{RUNS}-{{run}}/model.safetensors", run=ROWS),
        shown=expand(
            f"{SHOWN}/{{name}}.ipynb",
            name=["00_data", "01_detail_sampler", "03_cost", "04_table2", "05_figure4", "06_tables"],
        ),
    localrule: True
    run:
        print("\nWritten, from the runs in results/runs/:")
        for path in [*input.shown, "results/tables/table2.md", "results/figures/table2.png"]:
            print(f"  {path}")


rule videos:
    output:
        CSV,
    threads: workflow.cores
    shell:
        "python -m s2dlib.synthetic --out data/synthetic"


def train(name, arguments):
    """The command of one training run, whose record and weights are the rule's outputs."""
    return (
        "python -m s2dlib.run notebooks/02_train.ipynb {log} -p preset synthetic"
        f" -p name synthetic-{name} -p seed {{wildcards.seed}} {arguments}"
    )


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
        train("snet-{wildcards.seed}", "-p variant a1 -p recipe snet")


rule dnet_closeups:  # DNet learns the details, large and centred
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
            "closeups-{wildcards.seed}", "-p variant a2 -p recipe closeups -p train_split closeups"
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
        train("zoom-{wildcards.seed}", "-p variant a2 -p recipe zoom -p dnet_from ../{input}")


rule row:  # one row of Table 2, all together or what it keeps of the model
    input:
        snet=rules.snet_alone.output[0],
        dnet=rules.dnet_zoom.output[0],
    output:
        f"{RUNS}-{{row}}-{{seed}}/model.safetensors",
        f"{RUNS}-{{row}}-{{seed}}/metrics.json",
    log:
        f"{RUNS}-{{row}}-{{seed}}/train.ipynb",
    params:
        start=lambda wildcards, input: (
            f"-p snet_from ../{input.snet} " * (wildcards.row != "a2")
            + f"-p dnet_from ../{input.dnet}" * (wildcards.row != "a1")
        ),
    resources:
        gpu=1,
    priority: 1
    shell:
        train("{wildcards.row}-{wildcards.seed}", "-p variant {wildcards.row} {params.start}")


rule data:
    input:
        CSV,
    output:
        f"{SHOWN}/00_data.ipynb",
    shell:
        "python -m s2dlib.run notebooks/00_data.ipynb {output} -p max_files 600"


rule sampler:
    input:
        CSV,
    output:
        f"{SHOWN}/01_detail_sampler.ipynb",
    shell:
        "python -m s2dlib.run notebooks/01_detail_sampler.ipynb {output}"


rule cost:
    output:
        f"{SHOWN}/03_cost.ipynb",
    shell:
        "python -m s2dlib.run notebooks/03_cost.ipynb {output}"


rule table2:
    input:
        expand(f"{RUNS}-{{run}}/model.safetensors", run=ROWS),
    output:
        f"{SHOWN}/04_table2.ipynb",
    shell:
        "python -m s2dlib.run notebooks/04_table2.ipynb {output}"


rule figure4:
    input:
        expand(f"{RUNS}-{{run}}/model.safetensors", run=["a0-0", "a1-0"]),
    output:
        f"{SHOWN}/05_figure4.ipynb",
    shell:
        "python -m s2dlib.run notebooks/05_figure4.ipynb {output}"


rule other_tables:
    input:
        expand(f"{RUNS}-{{run}}/model.safetensors", run=ROWS),
    output:
        f"{SHOWN}/06_tables.ipynb",
    shell:
        "python -m s2dlib.run notebooks/06_tables.ipynb {output}"
