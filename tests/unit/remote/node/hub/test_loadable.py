"""The check of a model folder before training; tests/verl asks the real transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.hub import loadable
from testing.weights import safetensors
from tests.unit.remote.node.support import torch_file


def model(folder: Path, *weights: str, index: dict[str, list[str]] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    for name in weights:
        if name.endswith(".bin"):
            torch_file(folder / name)
        else:
            (folder / name).write_bytes(safetensors())
    for name, shards in (index or {}).items():
        weight_map = {f"tensor{number}": shard for number, shard in enumerate(shards)}
        (folder / name).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "tokenizer", ["tokenizer.json", "tiktoken.model", "vocab.txt", "sentencepiece.bpe.model", "bpe.codes"]
)
def test_a_tokenizer_of_any_name_is_one(tokenizer: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "model.safetensors")
    (folder / "tokenizer.json").rename(folder / tokenizer)
    assert loadable.problems(folder) == []


def test_a_folder_without_any_file_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", "model.safetensors")
    (folder / "tokenizer.json").rename(folder / "tokenizer_config.json")
    (folder / "README.md").touch()
    assert loadable.problems(folder) == ["the tokenizer is missing"]


@pytest.mark.parametrize(
    ("weights", "index", "problem"),
    [
        (["pytorch_model.bin"], {}, None),
        (["a.safetensors"], {"model.safetensors.index.json": ["a.safetensors"]}, None),
        ([], {}, "the weights are missing"),
        (["adapter_model.safetensors"], {}, "the weights are missing"),
        (
            ["model-1.safetensors"],
            {"model.safetensors.index.json": ["model-1.safetensors", "model-2.safetensors"]},
            "model-2.safetensors is missing, but model.safetensors.index.json names it",
        ),
        (
            ["pytorch_model-00001-of-00002.bin"],
            {
                "pytorch_model.bin.index.json": [
                    "pytorch_model-00001-of-00002.bin",
                    "pytorch_model-00002-of-00002.bin",
                ]
            },
            "pytorch_model-00002-of-00002.bin is missing, but pytorch_model.bin.index.json names it",
        ),
        (["pytorch_model-00001-of-00002.bin"], {}, "the weights are missing"),
    ],
)
def test_every_file_of_weights_that_transformers_will_read_must_be_there(
    weights: list[str], index: dict[str, list[str]], problem: str | None, tmp_path: Path
) -> None:
    found = loadable.problems(model(tmp_path / "m", *weights, index=index))
    assert len(found) == (problem is not None)
    assert not problem or found[0].startswith(problem)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", b"[]", "config.json must be a JSON object"),
        ("model.safetensors", safetensors()[:-1], "model.safetensors is cut off"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("model.safetensors.index.json", b"{}", None),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused(
    name: str, content: bytes | None, problem: str | None, tmp_path: Path
) -> None:
    folder = model(tmp_path / "m", "model.safetensors")
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    found = loadable.problems(folder)
    assert [problem in text for text in found] == [True] if problem else not found


class Tokenizer:
    """Stand-in for a tokenizer of transformers.

    Args:
        size: Number of its tokens.
        chat_template: Its template; one that contains "raise" fails.
    """

    all_special_ids = (0, 1, 2)

    def __init__(self, size: int = 100, chat_template: str | None = "ok") -> None:
        self.size = size
        self.chat_template = chat_template

    def __len__(self) -> int:
        return self.size

    def apply_chat_template(self, messages: Any, tokenize: bool, chat_template: str | None = None) -> str:
        if "raise" in (chat_template or self.chat_template or ""):
            raise ValueError("roles must alternate")
        return str(messages)


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-in for the package; its attribute ``answer`` is what AutoTokenizer returns or raises."""
    package: Any = ModuleType("transformers")
    package.answer = Tokenizer()

    def from_pretrained(path: str, local_files_only: bool, trust_remote_code: bool) -> Any:
        if isinstance(package.answer, Exception):
            raise package.answer
        return package.answer

    package.AutoConfig = SimpleNamespace(from_pretrained=lambda *_, **__: None)
    package.AutoTokenizer = SimpleNamespace(from_pretrained=from_pretrained)
    package.GenerationConfig = SimpleNamespace(from_pretrained=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "transformers", package)
    return package


def test_a_tokenizer_that_transformers_loads_is_good(transformers: Any, tmp_path: Path) -> None:
    assert loadable.load_tokenizer(tmp_path, "base_model", trust_remote_code=False) is transformers.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ValueError("no tokenizer"), r"transformers cannot load the tokenizer of .*ValueError: no tokenizer"),
        (Tokenizer(size=3), "has no vocabulary besides its special tokens"),
    ],
)
def test_a_tokenizer_that_transformers_cannot_load_is_refused(
    answer: Any, message: str, transformers: Any, tmp_path: Path
) -> None:
    transformers.answer = answer
    with pytest.raises(JobError, match=message):
        loadable.load_tokenizer(tmp_path, "base_model", trust_remote_code=False)


def test_an_environment_without_transformers_is_one_to_correct(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(JobError, match="environment") as raised:
        loadable.load_tokenizer(tmp_path, "base_model", trust_remote_code=False)
    assert raised.value.kind == "environment"


def refusing(problem: str) -> Any:
    """Stand-in for one of transformers' classes, whose files are wrong."""

    def from_pretrained(*_: Any, **__: Any) -> None:
        raise ValueError(problem)

    return SimpleNamespace(from_pretrained=from_pretrained)


def test_all_parts_that_a_model_has_are_loaded_before_it_is_uploaded(
    transformers: Any, tmp_path: Path
) -> None:
    folder = model(tmp_path / "m", "model.safetensors")
    assert loadable.check_loads(folder) == "Loaded with transformers: configuration, tokenizer"
    (folder / loadable.GENERATION_CONFIG).write_text("{}")
    assert loadable.check_loads(folder).endswith("configuration, generation configuration, tokenizer")
    transformers.AutoConfig = refusing("an adapter has none")
    assert loadable.check_loads(adapter(tmp_path / "adapter")) == "Loaded with transformers: tokenizer"


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("AutoConfig", "configuration"),
        ("AutoTokenizer", "tokenizer"),
        ("GenerationConfig", "generation configuration"),
    ],
)
def test_a_part_that_transformers_cannot_load_is_named(
    part: str, name: str, transformers: Any, tmp_path: Path
) -> None:
    folder = model(tmp_path / "m", "model.safetensors")
    (folder / loadable.GENERATION_CONFIG).write_text("{}")
    setattr(transformers, part, refusing("max_new_tokens is -3"))
    with pytest.raises(JobError, match=f"cannot load the {name} of .*max_new_tokens is -3"):
        loadable.check_loads(folder)


@pytest.mark.parametrize(
    ("saved", "refused"), [("5.11.0", False), ("5.10.4", True), ("5.9", True), (None, True)]
)
def test_a_model_of_a_newer_transformers_than_the_workers_is_uploaded_with_a_warning(
    saved: str | None, refused: bool, transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadable.metadata, "version", lambda name: "5.10.4")
    transformers.AutoConfig = refusing("model type qwen9 is not known")
    folder = model(tmp_path / "m", "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen9", "transformers_version": saved}))
    if refused:
        with pytest.raises(JobError, match="cannot load the configuration"):
            loadable.check_loads(folder)
    else:
        said = loadable.check_loads(folder)
        assert "WARNING: not loaded: transformers 5.11.0 saved this model, and 5.10.4 in" in said
        assert "qwen9 is not known" in said and "as a job (cluster=...)" in said


def test_code_of_a_models_own_is_not_run_for_an_upload(transformers: Any, tmp_path: Path) -> None:
    transformers.AutoConfig = refusing("custom code")
    folder = model(tmp_path / "m", "model.safetensors")
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "configuration_own.Own"}}')
    assert loadable.check_loads(folder).startswith("Not loaded: config.json names code")


def test_a_worker_without_transformers_uploads_what_it_cannot_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    folder = model(tmp_path / "m", "model.safetensors")
    assert loadable.check_loads(folder).startswith("Not loaded: transformers cannot be imported")


KEY = "sft.verl.model.custom_chat_template"


@pytest.mark.parametrize(
    ("own", "set_in_recipe", "message"),
    [
        (None, None, f"has no chat template.* set {KEY} in the recipe"),
        ("raise", None, "the chat template of /m cannot format .*roles must alternate"),
        ("ok", "raise", f"{KEY} cannot format"),
    ],
)
def test_a_chat_template_that_is_missing_or_fails_is_refused(
    own: str | None, set_in_recipe: str | None, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        loadable.check_chat_template(Tokenizer(chat_template=own), Path("/m"), KEY, set_in_recipe)


@pytest.mark.parametrize(("own", "set_in_recipe"), [("ok", None), (None, "ok"), ("raise", "ok")])
def test_the_recipes_chat_template_takes_the_place_of_the_models(
    own: str | None, set_in_recipe: str | None
) -> None:
    loadable.check_chat_template(Tokenizer(chat_template=own), Path("/m"), KEY, set_in_recipe)


def adapter(folder: Path, base: object = "me/base") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(safetensors())
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_the_folder_of_an_adapter_needs_no_model(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    assert loadable.adapter_problems(folder) == []
    assert loadable.problems(folder) == [
        "config.json is missing",
        "the weights are missing: no model.safetensors, no pytorch_model.bin and no index of them",
    ]


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("adapter_config.json", "adapter_config.json is missing"),
        ("adapter_model.safetensors", "adapter_model.safetensors is missing"),
        ("tokenizer.json", "the tokenizer is missing"),
    ],
)
def test_a_missing_file_of_an_adapter_is_named(missing: str, problem: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / missing).unlink()
    assert loadable.adapter_problems(folder) == [problem]


def test_weights_of_an_adapter_that_were_cut_off_are_named(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(safetensors()[:-1])
    assert "adapter_model.safetensors is cut off" in loadable.adapter_problems(folder)[0]


@pytest.mark.parametrize("base", [None, "", "/shared/models/x", "../x", "a/b/c"])
def test_an_adapter_names_its_base_model_by_its_repository(base: object, tmp_path: Path) -> None:
    assert "names no base model on the Hub" in loadable.adapter_problems(adapter(tmp_path / "a", base))[0]
