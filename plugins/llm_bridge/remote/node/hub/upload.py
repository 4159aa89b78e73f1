"""Upload a model and its tokenizer to a Hugging Face Hub, and verify that the Hub has the same files.

By hand:     python -m llm_bridge.remote.node upload --input_tokenizer_and_model_dir DIR --repo_id OWNER/NAME
By the DAG:  python node.pyz upload --settings settings.json      (its keys are the fields of Settings below)

Running it again is safe: files that the Hub has already are not sent again, and without a change there is no new
commit. It deletes nothing on the Hub. Requires huggingface_hub 1.33 or later.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import JobError, write_json
from llm_bridge.remote.node.hub import curves, model_card, published
from llm_bridge.remote.node.hub.loadable import ADAPTER_CONFIG, check_loads
from llm_bridge.remote.node.hub.model_folder import (
    FolderContent,
    LocalFile,
    NotAModel,
    check_model,
    difference,
    find_files,
)
from llm_bridge.remote.node.hub.sending import (
    Step,
    changes,
    progress_lines,
    pull_request_with,
    remote_files,
    send_large,
)
from llm_bridge.remote.node.hub.tags import move_tags
from llm_bridge.remote.node.hub.upload_errors import (
    BadInput,
    BadToken,
    UploadError,
    as_upload_error,
    with_retries,
)

# Characters of an owner or a repository's name on the Hub.
MAX_NAME = 96


@dataclass
class Uploaded:
    """Place of the files on the Hub.

    Attributes:
        commit: The commit with all files.
        is_new: True if this upload made it.
        pull_request: Page of the pull request to which it belongs; None where it belongs to the branch.
    """

    commit: str
    is_new: bool
    pull_request: str | None = None


@dataclass
class Settings:
    """Settings of an upload; the field names are the keys of ``settings.json``.

    Attributes:
        model_dir: Folder to upload.
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        private: True requires a private repository, False creates a public one. None creates a private repository, but
            accepts an existing public one.
        revision: Branch; created if missing.
        token_file: File that contains the token.
        delete_token_file: True to delete ``token_file`` after reading it.
        result: File for the result, as JSON.
        endpoint: URL of the Hub; None for HF_ENDPOINT or https://huggingface.co.
        commit_message: Message of the commit.
        pull_request: True to open a pull request for ``main`` instead of a commit there.
        card: Facts of the training for the model card; None for no card. From settings.json only.
        tags: Tags that will point to the commit. From settings.json only.
        keep_published: Number of newest nightly tags to keep; None for all. From settings.json only.
        better_than_published: True to upload only a model that is certainly better than the one on the Hub at that
            time; needs ``card``. From settings.json only.
        started_from: Identity of the model or the checkpoints that the run started from: with others at the same path
            the upload is another one. From settings.json only.
        hf_token: The token itself; from the command line only.
    """

    model_dir: Path
    repo_id: str
    private: bool | None = None
    revision: str = "main"
    token_file: Path | None = None
    delete_token_file: bool = False
    result: Path | None = None
    endpoint: str | None = None
    commit_message: str = "Upload model and tokenizer"
    pull_request: bool = False
    card: dict[str, Any] | None = None
    tags: list[str] | None = None
    keep_published: int | None = None
    better_than_published: bool = False
    started_from: str | None = None
    hf_token: str | None = None


class NotPublished(Exception):
    """The model on the Hub is as good or better; the text says so. It is no failure."""


def parse_arguments(argv: list[str]) -> Settings:
    """Return the settings from the command line, or from the file of ``--settings``.

    Args:
        argv: Arguments without the program's name.
    """
    parser = argparse.ArgumentParser(
        description="Upload a model and its tokenizer to a Hugging Face Hub and verify the uploaded files.",
        epilog="Exit codes: 0 uploaded or nothing to do, 2 wrong input, 3 the token is missing, was refused "
        "or has no write access, 1 any other error. The token comes from --token_file, else HF_TOKEN, else the file "
        "that `hf auth login` wrote. For an endpoint with plain http (a test Hub), Xet is off unless "
        "HF_HUB_DISABLE_XET is set otherwise.",
    )
    # fmt: off
    add = parser.add_argument
    add("--input_tokenizer_and_model_dir", type=Path, metavar="DIR", help="folder to upload")
    add("--repo_id", metavar="OWNER/NAME", help="repository on the Hub; created if missing")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private", action="store_true", default=None, dest="private",
        help="create a private repository (the default; older versions of this script created public ones), "
        "and refuse to upload if the repository exists and is public")
    visibility.add_argument(
        "--public", action="store_false", default=None, dest="private", help="create a public repository")
    add("--revision", default="main", help="branch, created if missing (default: main)")
    add("--commit_message", default=Settings.commit_message, metavar="TEXT", help="(default: %(default)s)")
    add("--pull_request", action="store_true", help="open a pull request for the branch main instead of a commit there")
    add("--token_file", type=Path, metavar="FILE", help="file that holds the token")
    add("--hf_token", metavar="TOKEN",
        help="NOT SAFE: every user of this machine can read it from the process list; use --token_file")
    add("--endpoint", metavar="URL", help="URL of the Hub (default: HF_ENDPOINT, else https://huggingface.co)")
    add("--result", type=Path, metavar="FILE", help="write the result as JSON to this file")
    add("--settings", type=Path, metavar="FILE", help="read all settings from this JSON file instead")
    # fmt: on
    values = vars(parser.parse_args(argv))
    settings_file, values["model_dir"] = values.pop("settings"), values.pop("input_tokenizer_and_model_dir")
    if settings_file:
        return read_settings(settings_file)
    if not values["model_dir"] or not values["repo_id"]:
        parser.error("give --input_tokenizer_and_model_dir and --repo_id, or --settings")  # exits with 2
    return Settings(**values)


def read_settings(path: Path) -> Settings:
    """Return the settings in a JSON file.

    Args:
        path: Path of ``settings.json``.

    Raises:
        BadInput: The file cannot be read, a key is unknown or missing, or a value has the wrong type.
    """
    texts = (
        "model_dir",
        "repo_id",
        "revision",
        "token_file",
        "result",
        "endpoint",
        "commit_message",
        "started_from",
    )
    types = {**dict.fromkeys(texts, str), "private": bool, "delete_token_file": bool, "pull_request": bool}
    types |= {"card": dict, "tags": list, "keep_published": int, "better_than_published": bool}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read the settings file {path}: {error}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path} must contain one JSON object")
    values = {key: value for key, value in values.items() if value not in (None, "")}
    for key, value in values.items():
        if key not in types:
            raise BadInput(f"{path}: unknown key '{key}'; known keys: {', '.join(types)}")
        if not isinstance(value, types[key]):
            raise BadInput(f"{path}: '{key}' must be a {types[key].__name__}, not {value!r}")
    for key in ("model_dir", "repo_id"):
        if key not in values:
            raise BadInput(f"{path}: '{key}' is missing")
    for key in ("model_dir", "token_file", "result"):
        if key in values:
            values[key] = Path(values[key])
    return Settings(**values)


def read_token(settings: Settings) -> tuple[str | None, str]:
    """Return the token for this run and a description of its source; None if no token is given.

    Without a token :func:`default_token` applies.

    Args:
        settings: Settings of the upload.

    Raises:
        BadToken: The token file cannot be read, or contains no token.
    """
    if settings.hf_token:
        print(
            "WARNING: --hf_token puts the token into the process list, where every user of this machine can "
            "read it. Use --token_file FILE or the environment variable HF_TOKEN, and replace this token at "
            "https://huggingface.co/settings/tokens",
            file=sys.stderr,
        )
        token, source = settings.hf_token, "the argument --hf_token"
    elif settings.token_file:
        source = f"the file {settings.token_file}"
        try:
            token = settings.token_file.read_text(encoding="utf-8")
            if settings.delete_token_file:
                settings.token_file.unlink()
        except (OSError, UnicodeDecodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise BadToken(f"cannot read the token from {source}: {problem}") from None
    elif os.environ.get("HF_TOKEN"):
        token, source = os.environ["HF_TOKEN"], "the environment variable HF_TOKEN"
    else:
        return None, ""
    return validated(token, source), source


def validated(token: str, source: str) -> str:
    """Return a token without surrounding blanks and line ends.

    Args:
        token: The token.
        source: Description of its source.

    Raises:
        BadToken: The token is empty or has blanks or characters outside printable ASCII.
    """
    token = token.strip()
    # An HTTP library would print a malformed header value, token included, in its own error message.
    if not re.fullmatch(r"[!-~]+", token):
        raise BadToken(
            f"{source} holds no token: it is empty, or has blanks or characters outside printable ASCII"
        )
    return token


def default_token() -> tuple[str, str]:
    """Return the token that `hf auth login` stored, and a description of its source.

    Raises:
        BadToken: No token is stored.
    """
    from huggingface_hub import constants, get_token

    token, path = get_token(), constants.HF_TOKEN_PATH
    if not token:
        raise BadToken(
            f"no Hub token: give --token_file, set HF_TOKEN, or run `hf auth login` (writes {path})"
        )
    source = f"the file {path}"
    return validated(token, source), source


def check_repo_id(repo_id: str) -> None:
    """Raise BadInput unless a repository id has the form ``OWNER/NAME`` and huggingface_hub accepts it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    problem = "" if repo_id.count("/") == 1 else "it has no owner"
    # huggingface_hub limits only the name.
    if any(len(part) > MAX_NAME for part in repo_id.split("/")):
        problem = f"owner and name have at most {MAX_NAME} characters each"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problem = problem or str(error)
    if problem:
        raise BadInput(f"repo_id '{repo_id}' is not of the form OWNER/NAME, as my-org/my-model: {problem}")


def check_token(api: Any, source: str, repo_id: str) -> None:
    """Sign in to the Hub, so that a bad token is found before any file is hashed or sent.

    Args:
        api: An ``HfApi`` with the token.
        source: Description of the token's source.
        repo_id: Repository on the Hub, ``OWNER/NAME``.

    Raises:
        BadToken: The Hub refuses the token, or the token is read-only.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        account = api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise BadToken(
            f"the Hub at {api.endpoint} refused the token (401) from {source}. The token may be mistyped, "
            "expired or for another Hub: create one with write access at "
            "https://huggingface.co/settings/tokens and store it there."
        ) from error
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    print(f"Signed in to {api.endpoint} as {account['name']} with the token from {source}")
    if role == "read":
        raise BadToken(
            f"the token from {source} (user {account['name']}) is read-only, but uploading to "
            f"{repo_id} needs one with write access: create it at https://huggingface.co/settings/tokens"
        )


def prepare_repo(api: Any, settings: Settings) -> None:
    """Create repository and branch if missing; never change the visibility of an existing repository.

    Args:
        api: An ``HfApi`` with the token.
        settings: Settings of the upload.

    Raises:
        BadInput: The repository is public, but the upload must be private.
    """
    wanted_private = settings.private is not False
    if not api.repo_exists(settings.repo_id):
        api.create_repo(settings.repo_id, private=wanted_private, exist_ok=True)
        print(f"Created the {'private' if wanted_private else 'public'} repository {settings.repo_id}")
    elif wanted_private and not api.model_info(settings.repo_id).private:
        if settings.private:
            raise BadInput(
                f"{settings.repo_id} exists and is public, but this upload must be private. Nothing was "
                "uploaded: choose another repo_id, make the repository private on the Hub, or allow a public one "
                "(--public)"
            )
        print(f"WARNING: {settings.repo_id} exists and is public, so this upload is public", file=sys.stderr)
    if not api.revision_exists(settings.repo_id, settings.revision):
        api.create_branch(settings.repo_id, branch=settings.revision, exist_ok=True)
        print(f"Created the branch {settings.revision}")


def files_of(settings: Settings, content: FolderContent, made: list[Path]) -> list[LocalFile]:
    """Return the files to upload; they are not hashed yet.

    Args:
        settings: Settings of the upload.
        content: Content of the model folder.
        made: Result of :func:`write_card`.
    """
    from huggingface_hub import CommitOperationAdd

    chosen = {full.relative_to(settings.model_dir).as_posix(): full for full in content.kept}
    chosen |= {path.name: path for path in made}
    return [
        LocalFile(path, full, CommitOperationAdd(path_in_repo=path, path_or_fileobj=full))
        for path, full in chosen.items()
    ]


def upload(api: Any, settings: Settings, files: list[LocalFile], step: Step) -> Uploaded:
    """Upload the files in one commit, unless the Hub has all of them already.

    Args:
        api: An ``HfApi`` with the token.
        settings: Settings of the upload.
        files: Files to upload: only those that were checked, not others that appear in the folder in the meantime.
        step: Runs a function under a name, and repeats it while the Hub is busy.
    """
    repo_id, revision, create_pr = settings.repo_id, settings.revision, settings.pull_request

    def compare() -> tuple[str, list[LocalFile], Uploaded | None]:
        """Return the newest commit, the files that it lacks, and the place where the Hub has all files, if any."""
        head, changed = changes(api, repo_id, revision, files)
        if not changed:
            return head, changed, Uploaded(head, is_new=False)
        found = pull_request_with(api, repo_id, settings.commit_message, files) if create_pr else None
        return head, changed, Uploaded(found[0], is_new=False, pull_request=found[1]) if found else None

    def commit() -> Uploaded:
        # Compared again: an upload of the same content at the same time may have been faster.
        head, changed, found = compare()
        if found:
            return found
        check_is_better(api, settings, head)
        made = api.create_commit(
            repo_id,
            [file.operation for file in changed],
            revision=revision,
            commit_message=settings.commit_message,
            parent_commit=head,
            create_pr=create_pr,
        )
        return Uploaded(made.oid, is_new=True, pull_request=made.pr_url)

    head, changed, found = step("Comparing with the Hub", compare)
    if found:
        present: Uploaded = found
        return present
    step("Comparing with the published model", lambda: check_is_better(api, settings, head))
    with progress_lines("Uploading", changed) as progress:
        send_large(api, repo_id, changed, progress, step, revision=revision, create_pr=create_pr)
        uploaded: Uploaded = step("Committing", commit)
    return uploaded


def check_is_better(api: Any, settings: Settings, head: str) -> None:
    """Compare the model with the one that is on the Hub now: another run may have published it since the evaluation.

    Args:
        api: An ``HfApi`` with the token.
        settings: Settings of the upload.
        head: Commit of the Hub to compare with.

    Raises:
        NotPublished: The model is not certainly better.
    """
    if not settings.better_than_published:
        return
    evaluation = model_card.evaluation_of(settings.card or {})
    own = model_card.evaluated(evaluation)
    if not own:
        raise NotPublished("not published because the model was not evaluated")
    metric, data_hash = str(evaluation["metric"]), str(evaluation["data"]["hash"])
    now = published.at(api, settings.repo_id, head, metric, data_hash, evaluation.get("conditions"))
    holds, text = published.compare("model", own, now)
    if not holds:
        raise NotPublished(f"not published because {text}")
    print(text)


def load(model_dir: Path) -> None:
    """Load configuration and tokenizer with transformers, in a process of its own, whose memory ends with it.

    Args:
        model_dir: Path of the model folder.

    Raises:
        BadInput: transformers cannot load a part; nothing was uploaded.
        UploadError: The process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        try:
            print(pool.submit(check_loads, model_dir).result())
        except JobError as error:
            raise BadInput(f"{error}\nNothing was uploaded: others could not load it either.") from None
        except BrokenProcessPool:
            raise UploadError(
                "the process that loads configuration and tokenizer was killed, most likely because memory ran out: "
                "raise upload.mem in the recipe. Nothing was uploaded.",
                "host_oom",
            ) from None


def write_card(api: Any, settings: Settings, content: FolderContent, directory: Path) -> list[Path]:
    """Write the model card to commit, and its picture; nothing where the folder or the Hub has a card of a person.

    Args:
        api: An ``HfApi`` with the token.
        settings: Settings of the upload.
        content: Content of the model folder.
        directory: Directory for the card.
    """
    top = {full.name for full in content.kept if full.parent == settings.model_dir}
    if settings.card is None or model_card.CARD in top:
        return []
    if api.file_exists(settings.repo_id, model_card.CARD, revision=settings.revision):
        present = api.hf_hub_download(
            settings.repo_id, model_card.CARD, revision=settings.revision, local_dir=directory / "present"
        )
        if not model_card.is_generated(Path(present).read_text("utf-8", "replace")):
            print(f"The Hub has a {model_card.CARD} that llm-bridge did not make: it is left as it is")
            return []
    card = directory / model_card.CARD
    is_adapter = ADAPTER_CONFIG in top and "config.json" not in top
    made = [card]
    if (drawn := curves.draw(settings.card["jobs"])) and curves.FILE not in top:
        made.append(directory / curves.FILE)
        made[-1].write_text(drawn, encoding="utf-8")
    picture = made[-1].name if len(made) > 1 else None
    text = model_card.make_card(settings.repo_id, settings.card, is_adapter=is_adapter, picture=picture)
    card.write_text(text, encoding="utf-8")
    return made


def verify(api: Any, repo_id: str, commit: str, files: list[LocalFile]) -> None:
    """Compare every file with the commit, and print one line for each.

    Args:
        api: An ``HfApi`` with the token.
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        commit: Commit with the files.
        files: The local files.

    Raises:
        UploadError: A file of the commit differs from the local one.
    """
    present = remote_files(api, repo_id, commit)
    wrong = []
    for file in files:
        problem = difference(file, present.get(file.path))
        print(f"  {'WRONG   ' if problem else 'verified'} {file.size:>14,} bytes  {file.path}")
        if problem:
            wrong.append(f"{file.path} {problem}")
    if wrong:
        raise UploadError(
            f"{len(wrong)} of {len(files)} files at {repo_id}@{commit} differ from the local ones:\n  - "
            + "\n  - ".join(wrong)
            + "\nThe directory may have been changed during the upload. Run this again: it sends only these files."
        )


def run(settings: Settings, content: FolderContent, token: str, source: str) -> None:
    """Sign in, upload, verify, and write the result.

    Args:
        settings: Settings of the upload.
        content: Content of the model folder.
        token: Token for the Hub.
        source: Description of the token's source.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)

    def step(name: str, call: Callable[[], Any]) -> Any:
        return with_retries(call, name, api.endpoint)

    step("Signing in", lambda: check_token(api, source, settings.repo_id))
    step("Creating the repository", lambda: prepare_repo(api, settings))
    with tempfile.TemporaryDirectory() as directory:
        made = step("Reading the card", lambda: write_card(api, settings, content, Path(directory)))
        files = files_of(settings, content, made)
        for file in files:
            if file.path == model_card.CARD:
                step("Checking the card", partial(model_card.check_metadata, file.full, api.endpoint))
        uploaded = upload(api, settings, files, step)
        commit = uploaded.commit
        step("Comparing with the Hub", lambda: verify(api, settings.repo_id, commit, files))
        listed = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in files]
    tags = [] if settings.pull_request else settings.tags or []
    if tags:
        keep = settings.keep_published
        wanted = tags
        tags, removed = step("Tagging", lambda: move_tags(api, settings.repo_id, commit, wanted, keep))
        print(
            f"Tags at {commit}: {', '.join(tags)}" + (f"; removed: {', '.join(removed)}" if removed else "")
        )

    url = f"{api.endpoint}/{settings.repo_id}"
    if settings.result:
        result: dict[str, Any] = {"repo_id": settings.repo_id, "revision": commit}
        result |= {"url": url, "files": listed}
        if settings.card and (score := model_card.score(settings.card)) is not None:
            result["score"] = score
        result |= {"skipped": list(content.left_out), "new_commit": uploaded.is_new}
        result |= {"tags": tags} if tags else {}
        result |= {"pull_request": uploaded.pull_request} if uploaded.pull_request else {}
        settings.result.parent.mkdir(parents=True, exist_ok=True)
        write_json(settings.result, result)
    size = f"{len(files)} files ({sum(file.size for file in files) / 1e6:.1f} MB)"
    place = f"the pull request {uploaded.pull_request}" if uploaded.pull_request else url
    if uploaded.is_new:
        print(f"Uploaded {size} to {place} at {commit}")
    else:
        print(f"Nothing changed: {size} are already at {place} at {commit}; no new commit was made")


def prepare_environment(settings: Settings) -> str:
    """Set the environment variables that huggingface_hub reads at import, and return the Hub's URL.

    Args:
        settings: Settings of the upload.
    """
    if settings.endpoint:
        os.environ["HF_ENDPOINT"] = settings.endpoint.rstrip("/")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if endpoint.startswith("http://"):  # a test Hub has no storage service for Xet
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return endpoint


def main(argv: list[str] | None = None) -> int:
    """Run the program (``python node.pyz upload ...``) and return its exit code.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    # For a job's log file: each line is written at once, and a file name that cannot be encoded is no error.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    token, endpoint, reason = None, "", None
    try:
        settings = parse_arguments(sys.argv[1:] if argv is None else argv)
        # reason.json is written beside the result. Slurm may run a job again in the same directory.
        if settings.result:
            reason = settings.result.with_name(attempt_dir.REASON)
            reason.unlink(missing_ok=True)
        # Before all checks, so that a failed check does not leave a token file that has to be deleted.
        token, source = read_token(settings)
        endpoint = prepare_environment(settings)
        check_repo_id(settings.repo_id)
        if settings.pull_request and settings.revision != "main":
            raise BadInput(
                f"a pull request is for the branch main, not '{settings.revision}': omit revision or pull_request"
            )
        try:
            content = find_files(settings.model_dir)
            for path, cause in content.left_out.items():
                print(f"Left out: {path} ({cause})")
            check_model(settings.model_dir, content)
        except NotAModel as error:
            raise BadInput(str(error), "missing_path") from None
        load(settings.model_dir)
        if token is None:
            token, source = default_token()
        run(settings, content, token, source)
        return 0
    except NotPublished as refusal:
        print(refusal)
        if settings.result:
            # Without its manifest the stage is not finished: a cleared task compares again.
            settings.result.with_name(attempt_dir.STAGE_MANIFEST).unlink(missing_ok=True)
            write_json(settings.result, {"repo_id": settings.repo_id, "not_published": str(refusal)})
        return 0
    except Exception as error:
        known = error if isinstance(error, UploadError) else as_upload_error(error, endpoint)
        text = str(known) if known else traceback.format_exc()
        text = text.replace(token, "[token]") if token else text
        print(f"upload: {text}" if known else text, file=sys.stderr)
        if known and reason and reason.parent.is_dir():
            write_json(reason, known.as_reason(text))
        return known.exit_code if known else 1
