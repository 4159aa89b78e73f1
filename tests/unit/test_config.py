"""Cluster files, recipes and the form: what is wrong is named with file, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import available, load_cluster, load_recipe


def write(include: Path, name: str, text: str) -> None:
    (include / name).write_text(text, encoding="utf-8")


MINIMAL = "ssh_conn_id: s\nworkspace: /w\ngpus_per_node: 8\n"


def test_every_shipped_cluster_and_recipe_is_valid() -> None:
    assert load_cluster("example").name == "example"
    for name in available("clusters"):
        assert load_cluster(name).name == name
    for name in available("recipes"):
        assert load_recipe(name).name == name


def test_the_example_cluster_is_not_offered_in_the_form() -> None:
    assert "example" not in available("clusters")
    assert "local" in available("clusters")


def test_the_example_cluster_explains_every_key() -> None:
    """A key that is not in example.yaml is a key that nobody finds."""
    from llm_bridge.config.cluster import Cluster, Environment, HubSettings, RaySettings, StageDefaults
    from llm_bridge.config.load import include_dir

    text = (include_dir() / "clusters" / "example.yaml").read_text(encoding="utf-8")
    for model in (Cluster, Environment, RaySettings, HubSettings, StageDefaults):
        missing = [key for key in model.model_fields if key != "name" and f"{key}" not in text]
        assert not missing, f"{model.__name__}: {missing}"


def test_an_unknown_key_is_named_with_the_file_and_the_allowed_keys(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "partitionn: gpu\n")
    with pytest.raises(ConfigError) as error:
        load_cluster("mine")
    assert "include/clusters/mine.yaml" in str(error.value)
    assert "partitionn: no such key. Allowed here: account, " in str(error.value)
    assert " partition," in str(error.value)


def test_an_unknown_nested_key_lists_the_keys_of_its_own_level(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "ray: {ready_minute: 3}\n")
    with pytest.raises(ConfigError, match=r"ray\.ready_minute: no such key\. Allowed here: cpus_per_node"):
        load_cluster("mine")


def test_several_mistakes_are_told_at_once(include: Path) -> None:
    write(include, "clusters/mine.yaml", "ssh_conn_id: s\nworkspace: w\ndevice: tpu\n")
    with pytest.raises(ConfigError) as error:
        load_cluster("mine")
    text = str(error.value)
    assert "3 thing(s)" in text
    assert "gpus_per_node: this key is required" in text
    assert "workspace: must be an absolute path" in text and "(got 'w')" in text
    assert "'cuda' or 'cpu'" in text


@pytest.mark.parametrize(
    "value", ["gpu; rm -rf /", "$(id)", "a b", "gpu\n#SBATCH --uid=0", "`id`", "グ", "'"]
)
def test_a_partition_that_would_need_quoting_is_refused(include: Path, value: str) -> None:
    import yaml

    write(include, "clusters/mine.yaml", MINIMAL + yaml.safe_dump({"partition": value}))
    with pytest.raises(ConfigError, match="partition"):
        load_cluster("mine")


def test_an_unknown_name_lists_the_files_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"'\.\./\.\./etc/passwd' is not one of the clusters .* choose from .*local"
    ):
        load_cluster("../../etc/passwd")
    with pytest.raises(ConfigError, match="tiny_cpu"):
        load_recipe("nope")


def test_broken_yaml_names_file_and_line(include: Path) -> None:
    write(include, "recipes/mine.yaml", "base_model: [\n")
    with pytest.raises(ConfigError, match=r"include/recipes/mine\.yaml is not valid YAML(.|\n)*line 2"):
        load_recipe("mine")


def test_two_ways_into_the_environment_are_refused(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "environment: {venv: /v, container: /c.sif}\n")
    with pytest.raises(ConfigError, match="set one of venv, conda, container; venv and container are set"):
        load_cluster("mine")


@pytest.mark.parametrize(
    ("stage", "key", "advice"),
    [
        ("sft", "model.strategy", "is called engine.strategy in today's verl"),
        ("sft", "model.partial_pretrain", "the recipe's base_model"),
        ("sft", "data.prompt_key", "'messages' column"),
        (
            "ppo",
            "critic.model.fsdp_config.param_offload",
            "is called critic.fsdp.param_offload in today's verl",
        ),
        ("ppo", "trainer.nnodes", "is set by llm-bridge from ppo.nodes"),
        ("ppo", "data.x=1 trainer.y", "is not a verl key"),
    ],
)
def test_a_verl_key_that_cannot_be_used_is_told_with_what_to_write(
    include: Path, stage: str, key: str, advice: str
) -> None:
    write(include, "recipes/mine.yaml", f"base_model: a/b\n{stage}:\n  verl:\n    {key}: 1\n")
    with pytest.raises(ConfigError) as error:
        load_recipe("mine")
    assert advice in str(error.value)


def test_verl_settings_may_be_nested_or_dotted(include: Path) -> None:
    write(
        include,
        "recipes/mine.yaml",
        "base_model: a/b\nsft:\n  verl:\n    data: {max_length: 9}\n    optim.lr: 0.1\n",
    )
    assert load_recipe("mine").sft.verl == {"data.max_length": 9, "optim.lr": 0.1}


def test_a_number_that_yaml_reads_as_a_word_reaches_verl_as_a_number(include: Path) -> None:
    write(include, "recipes/mine.yaml", "base_model: a/b\nsft:\n  verl: {optim.lr: 1e-6, data.name: 1e}\n")
    assert load_recipe("mine").sft.verl == {"optim.lr": 1e-6, "data.name": "1e"}


def test_a_time_limit_without_quotes_is_told_to_get_some(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "time_limit: 2:00:00\n")
    with pytest.raises(ConfigError, match='time_limit: write it in quotes, such as "2:00:00"'):
        load_cluster("mine")


def test_a_file_cannot_give_itself_another_name(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "name: local\n")
    with pytest.raises(ConfigError, match="remove 'name'"):
        load_cluster("mine")
