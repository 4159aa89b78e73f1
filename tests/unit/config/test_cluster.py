"""Cluster files."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import ConfigError
from llm_bridge.slurm.spec import Resources


def write(include: Path, name: str, text: str) -> None:
    (include / name).write_text(text, encoding="utf-8")


MINIMAL = "ssh_conn_id: s\nworkspace: /w\ngpus_per_node: 8\n"


def test_the_example_cluster_explains_every_key() -> None:
    """Every key must be in example.yaml, where users look it up."""
    from llm_bridge.config.cluster import Cluster, Environment, HubSettings, RaySettings, StageDefaults
    from llm_bridge.config.include import include_dir

    text = (include_dir() / "clusters" / "example.yaml").read_text(encoding="utf-8")
    for model in (Cluster, Environment, RaySettings, HubSettings, StageDefaults):
        missing = [key for key in model.model_fields if key != "name" and f"{key}" not in text]
        assert not missing, f"{model.__name__}: {missing}"


@pytest.mark.parametrize(
    "value", ["gpu; rm -rf /", "$(id)", "a b", "gpu\n#SBATCH --uid=0", "`id`", "グ", "'"]
)
def test_a_partition_that_would_need_quoting_is_refused(include: Path, value: str) -> None:
    import yaml

    write(include, "clusters/mine.yaml", MINIMAL + yaml.safe_dump({"partition": value}))
    with pytest.raises(ConfigError, match="partition"):
        load_cluster("mine")


@pytest.mark.parametrize("where", ["", "stages: {sft: {PLACE}}"])
def test_the_signal_before_the_time_limit_is_not_replaced_for_all_jobs(include: Path, where: str) -> None:
    """Without it a training ends without saving its last step."""
    options = "options: {signal: USR1@10}"
    text = where.replace("PLACE", options) if where else options
    (include / "clusters" / "c.yaml").write_text(f"ssh_conn_id: s\nworkspace: /w\ngpus_per_node: 8\n{text}\n")
    with pytest.raises(ConfigError, match="options: signal: it would replace the signal"):
        load_cluster("c")
    assert Resources(options={"signal": "USR1@10"}).options


def test_two_ways_into_the_environment_are_refused(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "environment: {venv: /v, container: /c.sif}\n")
    with pytest.raises(ConfigError, match="set one of venv, conda, container; venv and container are set"):
        load_cluster("mine")


def test_several_partitions_are_one_option_of_slurm(include: Path) -> None:
    file = include / "clusters" / "several.yaml"
    text = "ssh_conn_id: null\nworkspace: /w\ngpus_per_node: 8\n"
    file.write_text(f"{text}partitions: [gpu, long]\nstages: {{ppo: {{partitions: [big, huge]}}}}\n")
    cluster = load_cluster("several")
    assert (cluster.partition, cluster.stages["ppo"].partition) == ("gpu,long", "big,huge")
    for wrong, said in (
        ("partition: gpu\npartitions: [long]\n", "set partition or partitions, not both"),
        ("partitions: gpu\n", r"partitions must be a list of names, such as \[a, b\] \(got 'gpu'\)"),
        ("partitions: [a b]\n", "partition: must be one word"),
    ):
        file.write_text(text + wrong)
        with pytest.raises(ConfigError, match=said):
            load_cluster("several")
