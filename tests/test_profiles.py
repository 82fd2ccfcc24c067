"""The profiles for clusters: every rule that trains has its GPU, memory and time there."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parents[1]
TRAINING = {"snet_alone", "dnet_closeups", "dnet_zoom", "row", "trial", "constant"}
PLUGINS = {"slurm": "slurm", "kubernetes": "cluster_generic"}


@pytest.mark.parametrize("name", PLUGINS)
def test_every_rule_that_trains_has_its_resources(name):
    profile = yaml.safe_load((TOP / "profiles" / name / "config.yaml").read_text())
    rules = re.split(r"^rule ", (TOP / "Snakefile").read_text(), flags=re.M)[1:]
    trains = re.compile(r"^ +(shell\()?train\(", re.M)  # not the function of that name
    assert {rule.split(":")[0] for rule in rules if trains.search(rule)} == TRAINING
    assert set(profile["set-resources"]) == set(profile["set-threads"]) == TRAINING
    default = profile["default-resources"]["mem_mb"]
    assert all(rule["mem_mb"] > default for rule in profile["set-resources"].values())


def dry_run(profile, tmp_path, *arguments):
    """What snakemake would do with the profile, in a copy of what it reads."""
    for name in ("Snakefile", "profiles", "notebooks", "s2dlib"):
        (tmp_path / name).symlink_to(TOP / name)
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--profile", f"profiles/{profile}"]
    environment = os.environ | {"PYTHONPATH": f"{TOP}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_slurm_profile_gives_a_training_its_gpu_memory_and_time(tmp_path):
    plugin = importlib.util.find_spec("snakemake_executor_plugin_slurm")
    said = dry_run("slurm", tmp_path, *([] if plugin else ["--executor", "local"]))
    row = said[said.index("rule row:") :].split("\n\n")[0]
    resources = re.search("resources: (.*)", row)[1]
    assert "gpu=1" in resources and "mem_mb=64000" in resources and "runtime=2880" in resources
    assert re.search(r"^all +1$", said, re.M)


def test_the_kubernetes_profile_plans_the_same_runs(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    said = dry_run("kubernetes", tmp_path)
    assert "gpu=1" in said and re.search(r"^all +1$", said, re.M)


KUBECTL = """#!/bin/sh
# A cluster of one: keeps the manifest; its Job has succeeded once
case $1 in create) cat > "$(dirname "$0")/job.yaml" ;; get) printf '%s' "$COUNTS" ;; esac
"""


def test_the_job_of_kubernetes_is_a_manifest_with_the_script_and_its_resources(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    scripts, sh = TOP / "profiles" / "kubernetes", shutil.which("sh")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "S2D_IMAGE": "registry/image:1"}
    options = {"env": environment, "text": True, "cwd": tmp_path}
    command = [sh, scripts / "job.sh", "10", "64000", "1", "/s2dnet/job.sh"]
    name = subprocess.check_output(command, **options).strip()
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert job["metadata"]["name"] == name and container["image"] == "registry/image:1"
    assert container["command"] == ["sh", "/s2dnet/job.sh"]
    assert container["workingDir"] == str(tmp_path)
    assert container["resources"]["limits"] == {"memory": "64000M", "nvidia.com/gpu": 1}
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}
    for counts, word in (("1,", "success"), (",1", "failed"), (",", "running")):
        environment["COUNTS"] = counts
        said = subprocess.check_output([sh, scripts / "status.sh", name], **options)
        assert said.strip() == word
