"""Checks that transformers can load a model folder, as training does, before a GPU is allocated for that."""

from __future__ import annotations

import fnmatch
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.hub.weight_files import Corrupt, check_torch_file, json_object, safetensors_names

# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Of an adapter, as peft writes them.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GENERATION_CONFIG = "generation_config.json"
# No file of a tokenizer matches one of these. Those that do match have many names (vocab.txt, tiktoken.model,
# sentencepiece.bpe.model, ...), which only transformers knows.
NO_TOKENIZER = (
    *(
        "*config.json",
        "*.index.json",
        "*.safetensors",
        "*.bin",
        "*.pt",
        "*.pth",
        "*.gguf",
        "*.h5",
        "*.msgpack",
    ),
    *(".*", "*.md", "*.py", "*.jinja", "*.log", "LICENSE*", "NOTICE*", "USE_POLICY*", "chat_template.json"),
)
# Both sides of a conversation in the prepared data.
CONVERSATION = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "#### 2"}]


def may_be_tokenizer(name: str) -> bool:
    """Return True if a file of this name may belong to a tokenizer."""
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in NO_TOKENIZER)


def problems(model: Path) -> list[str]:
    """Return the problems of the files of a model folder, without transformers; none if it may be loadable.

    Args:
        model: Path of the model folder.

    Raises:
        OSError: The folder or a file cannot be read.
    """
    names = {path.name for path in model.iterdir() if path.is_file()}
    found = _json_problems(model / "config.json")
    if not any(may_be_tokenizer(name) for name in names):
        found.append("the tokenizer is missing")
    weights = next((name for name in WEIGHTS if {name, f"{name}.index.json"} & names), None)
    if weights is None:
        return [*found, f"the weights are missing: no {', no '.join(WEIGHTS)} and no index of them"]
    index, shards = f"{weights}.index.json", {weights}
    if weights not in names:
        try:
            content = json_object((model / index).read_bytes())
            shards = {str(shard) for shard in content["weight_map"].values()}
        except (Corrupt, KeyError, AttributeError) as error:
            return [*found, f"{index} is no index of weights: {error}"]
    for shard in sorted(shards):
        if shard not in names:
            found.append(f"{shard} is missing, but {index} names it")
            continue
        try:
            if shard.endswith(".safetensors"):
                safetensors_names(model / shard)
            elif not (model / shard).stat().st_size:
                raise Corrupt("is empty")
            else:
                check_torch_file(model / shard, must_be_torch=False)
        except Corrupt as error:
            found.append(f"{shard} {error}")
    return found


def adapter_problems(model: Path) -> list[str]:
    """Return the problems of the files of a LoRA adapter's folder; none if peft may load it.

    Args:
        model: Path of the adapter's folder.

    Raises:
        OSError: The folder or a file cannot be read.
    """
    names = {path.name for path in model.iterdir() if path.is_file()}
    found = adapter_config_problems(model / ADAPTER_CONFIG)
    if not any(may_be_tokenizer(name) for name in names):
        found.append("the tokenizer is missing")
    if ADAPTER_WEIGHTS not in names:
        return [*found, f"{ADAPTER_WEIGHTS} is missing"]
    try:
        safetensors_names(model / ADAPTER_WEIGHTS)
    except Corrupt as error:
        found.append(f"{ADAPTER_WEIGHTS} {error}")
    return found


def adapter_config_problems(path: Path) -> list[str]:
    """Return the reasons for which peft would not find the base model of an adapter.

    Args:
        path: The adapter's configuration.
    """
    if problems := _json_problems(path):
        return problems
    base = json_object(path.read_bytes()).get("base_model_name_or_path")
    if isinstance(base, str) and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", base):
        return []
    return [
        f"{path.name} names no base model on the Hub (OWNER/NAME) as base_model_name_or_path, but {base!r}: "
        "others could not load the adapter"
    ]


def _json_problems(path: Path) -> list[str]:
    try:
        json_object(path.read_bytes())
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    except Corrupt as error:
        return [f"{path.name} {error}"]
    return []


def load_tokenizer(model: Path, key: str, *, trust_remote_code: bool) -> Any:
    """Load configuration and tokenizer of a model as verl does, and return the tokenizer.

    Args:
        model: Path of the model folder.
        key: Key of the recipe that names the model, for error messages.
        trust_remote_code: verl's setting: True runs code of the model's own.

    Raises:
        JobError: transformers is not installed, or cannot load them.
    """
    try:
        from transformers import AutoConfig, AutoTokenizer
    except ImportError as error:
        raise JobError(
            f"transformers cannot be imported: {error}. Install requirements-cluster.txt in the environment of jobs, "
            "or correct 'environment' in the cluster file under include/clusters/.",
            kind="environment",
        ) from error
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    _load(AutoConfig, "configuration", model, key, options)
    return _checked(_load(AutoTokenizer, "tokenizer", model, key, options), model, key)


def _load(kind: Any, part: str, model: Path, key: str, options: dict[str, Any]) -> Any:
    try:
        return kind.from_pretrained(str(model), **options)
    except Exception as error:  # transformers and tokenizers raise many types, Exception itself among them
        raise JobError(
            f"{key}: transformers cannot load the {part} of {model}: {type(error).__name__}: {error}",
            kind="bad_config",
        ) from error


def _checked(tokenizer: Any, model: Path, key: str) -> Any:
    """Return a tokenizer; transformers 5 makes an empty one where a file with its vocabulary is missing."""
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise JobError(
            f"{key}: the tokenizer of {model} has no vocabulary besides its special tokens: a file is missing. Files "
            f"there: {', '.join(sorted(path.name for path in model.iterdir()))}",
            kind="bad_config",
        )
    return tokenizer


def check_loads(model: Path) -> str:
    """Load what transformers reads of a model or an adapter besides the weights, without running code of its own.

    Args:
        model: Path of the folder.

    Returns:
        A line for the log: the parts that were loaded, or the reason why none was.

    Raises:
        JobError: transformers cannot load a part, and is not older than the one that saved the model.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if (model / name).exists() and "auto_map" in json_object((model / name).read_bytes()):
            return (
                f"Not loaded: {name} names code of the model's own (auto_map), which an upload does not run"
            )
    try:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    except ImportError as error:
        return f"Not loaded: transformers cannot be imported here ({error})"
    try:
        parts = _loaded_parts(model, AutoConfig, AutoTokenizer, GenerationConfig)
        return f"Loaded with transformers: {', '.join(parts)}"
    except JobError as error:
        # A worker may have another environment than the job that trained the model.
        saved = saved_with(model)
        if not saved or _release(saved) <= _release(here := metadata.version("transformers")):
            raise
        return (
            f"WARNING: not loaded: transformers {saved} saved this model, and {here} in {sys.executable} cannot load "
            f"it ({error}). An upload as a job (cluster=...) checks it in the environment that trained it"
        )


def saved_with(model: Path) -> str | None:
    """Return the version of transformers that saved a model; None where its configuration does not say it.

    Args:
        model: Path of the model folder.
    """
    try:
        found = json_object((model / "config.json").read_bytes()).get("transformers_version")
    except (OSError, Corrupt):
        return None
    return found if isinstance(found, str) else None


def _release(version: str) -> list[int]:
    """Return the numbers of a version, without what follows them (``5.10.4.dev0``)."""
    return [int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]


def _loaded_parts(model: Path, config: Any, tokenizer: Any, generation: Any) -> list[str]:
    options = {"local_files_only": True, "trust_remote_code": False}
    loaded = []
    if (model / "config.json").exists():  # an adapter's is in its base model
        _load(config, "configuration", model, "model_dir", options)
        loaded.append("configuration")
    if (model / GENERATION_CONFIG).exists():
        _load(generation, "generation configuration", model, "model_dir", {"local_files_only": True})
        loaded.append("generation configuration")
    _checked(_load(tokenizer, "tokenizer", model, "model_dir", options), model, "model_dir")
    return [*loaded, "tokenizer"]


def check_chat_template(tokenizer: Any, model: Path, setting: str, template: Optional[str]) -> None:
    """Refuse a model whose chat template is missing or cannot format the prepared data.

    Args:
        tokenizer: The model's tokenizer.
        model: Path of the model folder, for error messages.
        setting: Key of the recipe that sets another template.
        template: The value of that key; None where it is not set.

    Raises:
        JobError: There is no template, or it fails.
    """
    if template is None and not tokenizer.chat_template:
        raise JobError(
            f"base_model: {model} has no chat template, which training needs to format questions and answers. Use an "
            f"instruction-tuned model, or set {setting} in the recipe to a Jinja template, such as "
            + json.dumps("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
            + ".",
            kind="bad_config",
        )
    given = {} if template is None else {"chat_template": template}
    try:
        tokenizer.apply_chat_template(CONVERSATION, tokenize=False, **given)
    except Exception as error:  # jinja2's, and whatever a template raises
        where = f"the chat template of {model}" if template is None else setting
        raise JobError(
            f"{where} cannot format a question and its answer: {type(error).__name__}: {error}. Set {setting} in the "
            "recipe to a Jinja template for the roles user and assistant.",
            kind="bad_config",
        ) from error
