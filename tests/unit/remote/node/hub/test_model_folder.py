"""model_folder.py: what of a model folder goes to the Hub, what stays, and what makes it unfit."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from llm_bridge.remote.node.hub.model_folder import NotAModel, check_model, find_files
from testing.weights import safetensors

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n-----END OPENSSH PRIVATE KEY-----\n"
TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest model."""
    files = {"config.json": '{"model_type": "llama"}', "tokenizer.json": '{"version": "1.0"}'}
    return put(tmp_path / "model", {**files, "model.safetensors": safetensors()})


def paths(folder: Path) -> set[str]:
    """What would be uploaded."""
    found = find_files(folder)
    check_model(folder, found)
    return {file.relative_to(folder).as_posix() for file in found.kept}


SMALLEST = {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_whole_llama_with_shards_card_license_images_and_code_is_uploaded_in_full(tmp_path: Path) -> None:
    shards = {f"model-0000{n}-of-00003.safetensors": (f"w{n}", "norm") for n in (1, 2, 3)}
    weight_map = {name: shard for shard, names in shards.items() for name in names if name != "norm"}
    whole = {
        **{shard: safetensors(names=names) for shard, names in shards.items()},
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}),
        "config.json": '{"model_type": "llama"}',
        "generation_config.json": "{}",
        "tokenizer.json": json.dumps(
            {"model": {"vocab": {"token": 0, "secret": 1, "hf_": 2, "password": 3}}}
        ),
        "tokenizer_config.json": "{}",
        "special_tokens_map.json": "{}",
        "added_tokens.json": "{}",
        "tokenizer.model": b"\x0a\x0e",
        "merges.txt": "a b",
        "tokens.txt": "a 0",
        "chat_template.jinja": "{{ bos_token }}",
        "preprocessor_config.json": "{}",
        "trainer_state.json": "{}",
        "all_results.json": "[1]",
        "README.md": f"---\nlicense: mit\n---\nSet hf_{'x' * 34}, or\nexport HF_TOKEN=your_token_here_please\n",
        "LICENSE": "MIT",
        "NOTICE": "",
        "USE_POLICY.md": "be kind",
        ".gitattributes": "*.safetensors filter=lfs",
        "images/loss [1].png": b"\x89PNG\x00hf_",
        "modeling_mine.py": "token = hf_config\n",
        "hf_tokenizer.py": "",
        "core.py": "",
        "optimizer.py": "",
        "tokenization_mine.py": "",
        "__init__.py": "",
        "original/consolidated.00.pth": b"\x80\x02",
        "original/params.json": "{}",
        "onnx/model.onnx": b"\x08",
        "model-Q4_K_M.gguf": b"GGUF",
    }
    assert paths(put(tmp_path / "model", whole)) == set(whole)


@pytest.mark.parametrize(
    "name",
    [
        *(".env", ".env.local", "prod.env", ".netrc", "_netrc", ".ssh/id_rsa", "id_ed25519", "ID_RSA.bak", "token"),
        *("hf_token.txt", "HF_TOKEN", ".huggingface/token", "server.PEM", "tls.key", "credentials.json"),
        *("secrets.yaml", "__pycache__/a.pyc", ".cache/x", "train.log"),
        *("client_secret_12.json", "wandb_api_key.txt", ".aws/credentials", ".git/config", ".gitignore", ".DS_Store"),
        *("optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin"),
        *("checkpoint-5/model.safetensors", "tmp-checkpoint-10/x.json", "global_step_7/actor/x", "global_step10/x"),
        *("optim_world_size_2_rank_0.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "random_states_0.pkl"),
        *("half.safetensors.tmp", "nested/state.tmp", "wandb/run-1/logs.txt", "a.distcp"),
        *("events.out.tfevents.123.n1", "slurm-12.out", ".ipynb_checkpoints/a.ipynb", ".llm_bridge_source.json"),
    ],
)  # fmt: skip
def test_secrets_trainer_state_and_temporary_files_stay_here_and_are_named(folder: Path, name: str) -> None:
    put(folder, {name: "x"})
    assert paths(folder) == SMALLEST
    [left_out] = find_files(folder).left_out
    assert name.startswith(left_out)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (KEY, "a private key"),
        ("-----BEGIN PRIVATE KEY-----\n", "a private key"),
        (json.dumps({"private_key": "-----BEGIN RSA PRIVATE KEY-----\\nMII"}), "a private key"),
        (f"I log in with {TOKEN}.", "a Hugging Face token"),
        ("aws AKIAIOSFODNN7EXAMPLE", "an API key"),
        ("ghp_" + "a1" * 18, "an API key"),
        ("export WANDB_API_KEY=" + "0a" * 20, "a key or password"),
        ("machine api.wandb.ai\n  login user\n  password " + "0a" * 20, "a key or password"),
    ],
)
def test_a_file_with_a_secret_in_it_stays_here_whatever_its_name(
    folder: Path, content: str, what: str
) -> None:
    put(folder, {"nested/notes.txt": content})
    assert paths(folder) == SMALLEST
    assert find_files(folder).left_out == {"nested/notes.txt": f"holds {what}"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "modeling_mine.py"])
def test_a_needed_file_with_a_secret_in_it_is_refused_since_the_model_is_broken_without_it(
    folder: Path, name: str
) -> None:
    put(folder, {name: json.dumps({"token": TOKEN})})
    with pytest.raises(NotAModel, match=rf"- {name} holds a Hugging Face token") as error:
        paths(folder)
    assert TOKEN not in str(error.value)


def test_links_that_lead_outside_are_refused_with_their_targets(folder: Path, tmp_path: Path) -> None:
    put(tmp_path, {"elsewhere/private.txt": "mine", "elsewhere/more/x.txt": "mine"})
    (folder / "notes.txt").symlink_to(tmp_path / "elsewhere" / "private.txt")
    (folder / "sub").mkdir()
    (folder / "sub" / "up.txt").symlink_to("../../elsewhere/private.txt")
    (folder / "all").symlink_to("../elsewhere", target_is_directory=True)
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    (folder / "first.txt").symlink_to("second.txt")
    (folder / "second.txt").symlink_to("/etc/hostname")
    with pytest.raises(NotAModel) as error:
        paths(folder)
    for link, target in {
        "notes.txt": tmp_path / "elsewhere" / "private.txt",
        "sub/up.txt": "../../elsewhere/private.txt",
        "all": "../elsewhere",
        "gone.txt": tmp_path / "nowhere",
        "first.txt": "second.txt",
        "second.txt": "/etc/hostname",
    }.items():
        assert f"- {link} is a link to {target}, outside of the model directory" in str(error.value)


def test_links_within_the_folder_are_no_fault_and_hide_nothing(folder: Path, tmp_path: Path) -> None:
    put(folder, {"assets/logo.png": "png", "checkpoint-5/optimizer.pt": "state", ".env": "x"})
    (folder / "logo.png").symlink_to("assets/logo.png")
    (folder / "absolute.png").symlink_to(folder / "assets" / "logo.png")
    (folder / "pictures").symlink_to("assets", target_is_directory=True)
    (folder / "round").symlink_to(".", target_is_directory=True)
    (folder / "harmless.txt").symlink_to(".env")
    (folder / "state.dat").symlink_to("checkpoint-5/optimizer.pt")
    (tmp_path / "by_link").symlink_to(folder, target_is_directory=True)
    for seen_from in (folder, tmp_path / "by_link"):
        assert paths(seen_from) == SMALLEST | {"assets/logo.png", "logo.png", "absolute.png"}
    left_out = {"checkpoint-5/", ".env", "pictures/", "round/", "harmless.txt", "state.dat"}
    assert set(find_files(folder).left_out) == left_out


def test_a_link_to_a_file_that_does_not_exist_is_refused(folder: Path) -> None:
    (folder / "README.md").symlink_to("CARD.md")
    with pytest.raises(NotAModel, match=r"README\.md is a link to CARD\.md, which does not exist"):
        paths(folder)


@pytest.mark.parametrize(
    ("name", "shown", "problem"),
    [
        (b"caf\xe9.txt", "caf\\xe9.txt", "a name that is not UTF-8: rename or remove it"),
        (b"two\nlines.txt", "two\\nlines.txt", "a control character in its name: rename or remove it"),
        (b"back\\slash.txt", "back\\slash.txt", "a backslash or a control character"),
    ],
)
def test_a_file_name_that_the_hub_cannot_have_is_refused(
    folder: Path, name: bytes, shown: str, problem: str
) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    with pytest.raises(NotAModel) as error:
        paths(folder)
    assert f"- {shown} has " in str(error.value) and problem in str(error.value)


def test_a_file_that_is_left_out_may_have_any_name(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.tmp")).touch()
    assert paths(folder) == SMALLEST


WHOLE = safetensors(names=("a", "b"))
HEADER = int.from_bytes(WHOLE[:8], "little")


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"1234", "no whole safetensors header"),
        (os.urandom(7) + b"\xff" + os.urandom(500), "no whole safetensors header"),
        (WHOLE[: HEADER // 2], "no whole safetensors header"),
        (WHOLE[:-1], "is cut off: it has 399 bytes, and its header describes 400"),
        (WHOLE[: HEADER + 8], "is cut off"),
        (WHOLE + b"x", "is corrupt: it has 401 bytes"),
        (WHOLE[:8] + b"\x00" + WHOLE[9:], "corrupt safetensors header"),
        ((2).to_bytes(8, "little") + b"[]", "must be a JSON object, not a list"),
        ((2).to_bytes(8, "little") + b"{}", "holds no tensor"),
        (header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}) + b"1234", "shape and bytes of 'a' differ"),
        (header(a={"dtype": "U8", "shape": [1], "data_offsets": [3, 4]}) + b"1234", "'a' is at bytes 3 to 4"),
        (header(a={"dtype": "U8", "shape": [-1], "data_offsets": [0, -1]}), "the entry of 'a'"),
        (header(a="U8"), "the entry of 'a'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "is a Git LFS pointer"),
    ],
)  # fmt: skip
def test_a_corrupt_or_truncated_safetensors_file_is_refused(
    folder: Path, content: bytes, problem: str
) -> None:
    put(folder, {"model.safetensors": content})
    with pytest.raises(NotAModel) as error:
        paths(folder)
    assert "- model.safetensors " in str(error.value) and problem in str(error.value)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
)
@pytest.mark.parametrize("content", ["", "{", "not JSON", "[1]", "null", b'{"a": "\xff"}', "[" * 100_000])
def test_a_configuration_that_is_no_json_object_is_refused(
    folder: Path, name: str, content: str | bytes
) -> None:
    put(folder, {name: content})
    with pytest.raises(NotAModel, match=rf"- {name} (is not valid JSON|must be a JSON object|is empty)"):
        paths(folder)


def test_a_shard_that_is_missing_is_named_with_and_without_an_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    put(folder, {f"model-0000{n}-of-00003.safetensors": safetensors(names=(f"w{n}",)) for n in (1, 3)})
    with pytest.raises(NotAModel) as error:
        paths(folder)
    assert "model-00002-of-00003.safetensors is missing: model-00001-of-00003.safetensors is there" in str(
        error.value
    )
    assert "model.safetensors.index.json is missing" in str(error.value)
    weight_map = {f"w{n}": f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    put(folder, {"model.safetensors.index.json": json.dumps({"weight_map": weight_map})})
    with pytest.raises(NotAModel) as error:
        paths(folder)
    assert str(error.value).count("model-00002-of-00003.safetensors is missing") == 1
    assert "names it" in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_cannot_be_used_is_refused(folder: Path, content: str) -> None:
    put(folder, {"model.safetensors.index.json": content})
    with pytest.raises(NotAModel, match=r"- model\.safetensors\.index\.json "):
        paths(folder)


def test_an_index_that_names_tensors_which_its_shard_lacks_is_refused(folder: Path) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": "model.safetensors", "lost": "model.safetensors"}}
    put(folder, {"model.safetensors.index.json": json.dumps(index)})
    with pytest.raises(NotAModel, match=r"model\.safetensors lacks 1 tensors .* as lost"):
        paths(folder)


def test_torch_files_are_complete_zip_archives_or_old_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    weights = folder / "pytorch_model.bin"
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80" * 1000)
    whole = weights.read_bytes()
    wanted = {"config.json", "tokenizer.json", "pytorch_model.bin"}
    for good in (whole, b"\x80\x02\x8a\x0al"):
        weights.write_bytes(good)
        assert paths(folder) == wanted
    for bad, problem in {whole[:-30]: "is cut off or corrupt", b"<html>": "is no file of torch.save"}.items():
        weights.write_bytes(bad)
        with pytest.raises(NotAModel, match=rf"- pytorch_model\.bin {problem}"):
            paths(folder)


def test_all_problems_are_named_at_once(folder: Path) -> None:
    put(folder, {"config.json": "{", "model.safetensors": b"x", "adapter/adapter_model.safetensors": b"y"})
    (folder / "a.txt").symlink_to("/etc/hostname")
    with pytest.raises(NotAModel) as error:
        paths(folder)
    for problem in (
        "a.txt is a link",
        "config.json is",
        "model.safetensors is",
        "adapter/adapter_model.safetensors is",
    ):
        assert f"- {problem}" in str(error.value)


ADAPTER: dict[str, str | bytes] = {
    "adapter_config.json": '{"r": 8, "base_model_name_or_path": "me/base"}',
    "adapter_model.safetensors": safetensors(),
    "tokenizer.json": "{}",
}


def test_an_adapter_with_its_tokenizer_is_uploaded_without_a_model(tmp_path: Path) -> None:
    assert paths(put(tmp_path / "adapter", ADAPTER)) == set(ADAPTER)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"adapter_config.json": "{"}, "adapter_config.json is not valid JSON"),
        (
            {"adapter_config.json": '{"base_model_name_or_path": "/shared/x"}'},
            "names no base model on the Hub",
        ),
        (
            {"adapter_model.safetensors": None, "a.safetensors": safetensors()},
            "the adapter's weights are missing",
        ),
        ({"adapter_model.safetensors": b"x"}, "adapter_model.safetensors is cut off or corrupt"),
    ],
)
def test_an_adapter_that_peft_could_not_load_is_refused(
    tmp_path: Path, changed: dict[str, str | bytes | None], problem: str
) -> None:
    files = {name: content for name, content in {**ADAPTER, **changed}.items() if content is not None}
    with pytest.raises(NotAModel) as error:
        paths(put(tmp_path / "adapter", files))
    assert str(error.value).count(problem) == 1
