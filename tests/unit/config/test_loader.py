"""Cluster files, recipes and the form: an error names the file, the key and the allowed values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_bridge.config.loader import available, load_cluster, load_recipe
from llm_bridge.exceptions import ConfigError


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


@pytest.mark.parametrize("name", ["my site.yaml", "mine+1.yaml", "mine.yml"])
def test_a_file_that_cannot_be_a_cluster_by_its_name_is_not_offered_and_the_error_says_so(
    include: Path, name: str
) -> None:
    write(include, f"clusters/{name}", MINIMAL)
    assert name.rpartition(".")[0] not in available("clusters")
    with pytest.raises(ConfigError, match=rf"Ignored because of their names: '{re.escape(name)}'; rename"):
        load_cluster(name.removesuffix(".yaml"))


def test_a_program_in_the_virtual_environment_is_refused_with_its_directory(include: Path) -> None:
    for program in ("activate", "python3"):
        write(include, "clusters/mine.yaml", MINIMAL + f"environment: {{venv: /e/verl/bin/{program}}}\n")
        with pytest.raises(ConfigError, match=r"environment\.venv: must be the directory .*: /e/verl \(got"):
            load_cluster("mine")


def test_an_unknown_key_is_named_with_the_file_and_the_allowed_keys(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "partitionn: gpu\n")
    with pytest.raises(ConfigError) as error:
        load_cluster("mine")
    assert "include/clusters/mine.yaml" in str(error.value)
    assert "partitionn: no such key. Did you mean partition? Allowed here: account, " in str(error.value)
    assert " partition," in str(error.value)


def test_an_unknown_nested_key_lists_the_keys_of_its_own_level(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "ray: {ready_minute: 3}\n")
    with pytest.raises(
        ConfigError,
        match=r"ray\.ready_minute: no such key\. Did you mean ready_minutes\? Allowed here: cpus_per_node",
    ):
        load_cluster("mine")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("reward: gsm8k", "reward: no such key. Did you mean ppo.reward? Allowed here: allocation"),
        ("source: a/b", "source: no such key. Did you mean data.source or data.sources.source?"),
        ("dta: {}", "dta: no such key. Did you mean data?"),
        ("overrides: x", "overrides: no such key. It is a field of the trigger form; in a recipe, set"),
        (
            "sft: {trainer.total_epochs: 1}",
            "verl's own settings belong under verl. Allowed here: cpus_per_task",
        ),
        (
            "data: {sources: [{sorce: a/b}]}",
            "data.sources.0.sorce: no such key. Did you mean source? Allowed here: config",
        ),
        ("zzz: 1", "zzz: no such key. Allowed here: allocation"),
    ],
)
def test_a_key_at_a_wrong_place_is_refused_with_the_right_one(include: Path, key: str, hint: str) -> None:
    write(include, "recipes/mine.yaml", f"base_model: a/b\n{key}\n")
    with pytest.raises(ConfigError) as error:
        load_recipe("mine")
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:", "data: expected keys below it, 'key: value', of columns, config, data_source,"),
        ("data: /d/x.jsonl", "(got '/d/x.jsonl')"),
        (
            "data: {columns: question}",
            "data.columns: expected keys below it, 'key: value', of messages, prompt,",
        ),
        ("data: {sources: [/d/x.csv]}", "data.sources.0: expected keys below it, 'key: value', of config,"),
        ("ppo: {verl: 5}", "ppo.verl: expected keys below it, 'key: value' (got 5)"),
    ],
)
def test_a_value_where_keys_are_expected_is_refused_with_these(
    include: Path, text: str, message: str
) -> None:
    write(include, "recipes/mine.yaml", f"base_model: a/b\n{text}\n")
    with pytest.raises(ConfigError) as error:
        load_recipe("mine")
    assert message in str(error.value)


def test_all_errors_of_a_file_are_reported_at_once(include: Path) -> None:
    write(include, "clusters/mine.yaml", "ssh_conn_id: s\nworkspace: w\ndevice: tpu\n")
    with pytest.raises(ConfigError) as error:
        load_cluster("mine")
    text = str(error.value)
    assert "is not valid, 3 error(s):" in text
    assert "gpus_per_node: this key is required" in text
    assert "workspace: must be an absolute path" in text and "(got 'w')" in text
    assert "'cuda' or 'cpu'" in text


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


def test_a_time_limit_without_quotes_is_refused_with_the_correct_form(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "time_limit: 2:00:00\n")
    with pytest.raises(ConfigError, match='time_limit: write it in quotes, such as "2:00:00"'):
        load_cluster("mine")


def test_a_file_cannot_give_itself_another_name(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "name: local\n")
    with pytest.raises(ConfigError, match="remove 'name'"):
        load_cluster("mine")


@pytest.mark.parametrize(
    ("stage", "verl", "message"),
    [
        ("sft", {"++model.lora.rank": 4}, "model.lora.rank=4 is LoRA of verl's Megatron engine"),
        ("sft", {"model": {"lora": {"rank": 8}}}, "model.lora.rank=8 is LoRA of verl's Megatron engine"),
        ("ppo", {"actor_rollout_ref.model.lora.rank": 1.0}, "use actor_rollout_ref.model.lora_rank"),
        ("ppo", {"actor_rollout_ref.model.lora.adapter_path": "/a"}, "LoRA of verl's Megatron engine"),
        ("sft", {"model.lora_adapter_path": "/a"}, "merge it into its base model"),
        ("ppo", {"actor_rollout_ref.model.lora_adapter_path": "/a"}, "merge it into its base model"),
        ("ppo", {"critic.model.lora_rank": 8}, "supports LoRA for actor_rollout_ref.model only"),
        ("sft", {"+model.lora_rank": "8"}, "model.lora_rank='8' must be a whole number"),
        ("sft", {"model.lora_rank": 8, "model.lora_alpha": 0}, "model.lora_alpha=0 must be a whole number"),
        ("sft", {"model.lora_rank": 8, "model.lora_alpha": 0.5}, "model.lora_alpha=0.5 must be a whole"),
        ("sft", {"model.lora_rank": 8, "model.target_parameters": ["w"]}, "model.target_parameters: verl"),
        (
            "sft",
            {"model.lora_rank": 8, "model.target_modules": ["lm_head"]},
            "names embeddings or the output",
        ),
        ("sft", {"model.lora_rank": 8, "model.target_modules": ".*embed_tokens"}, "names embeddings or the"),
        (
            "sft",
            {"model.lora_rank": 8, "checkpoint.save_lora_only": True},
            "checkpoint.save_lora_only leaves",
        ),
        (
            "ppo",
            {
                "actor_rollout_ref.model.lora_rank": 8,
                "actor_rollout_ref.actor.checkpoint": {"save_lora_only": True},
            },
            "actor_rollout_ref.actor.checkpoint.save_lora_only leaves",
        ),
    ],
)
def test_lora_that_could_not_be_merged_is_refused_with_the_key(
    include: Path, stage: str, verl: dict[str, object], message: str
) -> None:
    import yaml

    write(include, "recipes/mine.yaml", yaml.safe_dump({"base_model": "a/b", stage: {"verl": verl}}))
    with pytest.raises(ConfigError) as error:
        load_recipe("mine")
    assert message in str(error.value)


@pytest.mark.parametrize(("stage", "model"), [("sft", "model"), ("ppo", "actor_rollout_ref.model")])
def test_lora_is_set_under_verls_own_names(include: Path, stage: str, model: str) -> None:
    import yaml

    lora = {"lora_rank": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    content = {"base_model": "a/b", stage: {"verl": {model: lora}}, "hub": {"lora": "adapter"}}
    write(include, "recipes/mine.yaml", yaml.safe_dump(content))
    recipe = load_recipe("mine")
    assert getattr(recipe, stage).verl == {f"{model}.{key}": value for key, value in lora.items()}
    assert recipe.hub.lora == "adapter"


@pytest.mark.parametrize(
    "off", ["lora_rank: 0", "lora_adapter_path: null", "lora_alpha: 32", "lora: {rank: 0}"]
)
def test_lora_that_is_turned_off_is_no_fault(include: Path, off: str) -> None:
    write(include, "recipes/mine.yaml", f"base_model: a/b\nsft:\n  verl:\n    model: {{{off}}}\n")
    assert load_recipe("mine").sft.verl


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "x.yaml is empty"),
        (b"\xff\xfe\x00a", "x.yaml, line 1: not UTF-8 \\(byte 0xff\\): save it as UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(
    include: Path, content: bytes | None, words: str
) -> None:
    path = include / "clusters" / "x.yaml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_cluster("x")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("partition: a\npartition: b\n", "partition", (4, 5)),
        ("ray:\n  temp_dir: /a\n  idle_minutes: 3\n  temp_dir: /b\n", "temp_dir", (5, 7)),
        ("variables: {A: x, A: y}\n", "A", (4, 4)),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_file_key_and_lines(
    include: Path, text: str, key: str, lines: tuple[int, int]
) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + text)
    with pytest.raises(ConfigError) as error:
        load_cluster("mine")
    words = (
        f"include/clusters/mine.yaml: the key {key!r} stands twice, in line {lines[0]} and in line {lines[1]}"
    )
    assert words in str(error.value)


def test_yaml_anchors_and_merges_stay_valid(include: Path) -> None:
    stages = "stages:\n  prepare: &small {mem: 1G, qos: a}\n  merge: {<<: *small, mem: 2G}\n"
    write(include, "clusters/mine.yaml", MINIMAL + stages)
    merge = load_cluster("mine").stages["merge"]
    assert (merge.mem, merge.qos) == ("2G", "a")


@pytest.mark.parametrize(
    ("line", "form"),
    [
        ("mem: 64GB", "mem: must be a number with one of the units K, M, G, T, such as 64G"),
        ("partition: a b", "partition: must be one word of letters, digits and"),
        ("constraint: $x", "constraint: must be one word"),
        ('time_limit: "1h"', "time_limit: must be minutes, h:m:s, or d-h:m:s in quotes, such as"),
        ("variables: {A-B: x}", "must be the name of an environment variable, such as NCCL_DEBUG"),
        ("gpu_type: gpu:a100", "gpu_type: must be the type in Slurm's Gres, such as a100"),
        ("account: 7", "account: must be text: write it in quotes (got 7)"),
        ("variables: {A: 1}", "variables.A: must be text: write it in quotes (got 1)"),
        ("options: {--licenses: a}", "must be the long name of an sbatch option without dashes"),
    ],
)
def test_an_invalid_value_is_answered_with_the_valid_form_and_an_example(
    include: Path, line: str, form: str
) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + line + "\n")
    with pytest.raises(ConfigError) as error:
        load_cluster("mine")
    assert form in str(error.value) and "pattern" not in str(error.value)


def test_memory_may_be_a_number(include: Path) -> None:
    write(include, "clusters/mine.yaml", MINIMAL + "mem: 0\nstages: {merge: {mem_per_cpu: 4000}}\n")
    site = load_cluster("mine")
    assert (site.mem, site.stages["merge"].mem_per_cpu) == ("0", "4000")


def test_the_form_shows_names_with_their_descriptions_also_of_files_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_bridge.config.loader import titles

    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(tmp_path))
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "a.yaml").write_text('description: "Sums"  # short\nbase_model: x/y\n')
    (recipes / "b.yaml").write_text("base_model: [\n")
    assert titles("recipes") == {"a": "a: Sums", "b": "b"}
