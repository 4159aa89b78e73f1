#!/usr/bin/env python3
"""Upload a model and its tokenizer to a Hugging Face Hub, and check that what arrived is what was sent.

By hand:     python upload.py --input_tokenizer_and_model_dir DIR --repo_id OWNER/NAME
By the DAG:  python upload.py --settings settings.json      (its keys are the fields of Settings below)

Running it again is safe: files that are there already are not sent again, and with nothing changed there is
no new commit. It deletes nothing on the Hub. Needs huggingface_hub (1.33 or later) and the files beside this one.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job_io import write_json
from model_folder import IGNORED, LocalFile, NotAModel, check_model, difference, find_files, hash_file

_REPO_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REPO_ID = re.compile(rf"{_REPO_PART}/{_REPO_PART}")


class UploadError(Exception):
    """A failure that is explained to the user without a traceback.

    :param kind: its class, a name of llm_bridge/failures/kinds.py; None where none fits.
    """

    exit_code = 1
    kind: str | None = None

    def __init__(self, text: str, kind: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind or self.kind

    def as_json(self, text: str) -> dict[str, Any]:
        """Content of reason.json."""
        about = {"reason": text, "retry": self.exit_code == UploadError.exit_code}
        return {**about, "kind": self.kind} if self.kind else about


class BadInput(UploadError):
    exit_code = 2
    kind = "bad_config"


class BadToken(UploadError):
    """The token is missing, was refused, or may not write there."""

    exit_code = 3
    kind = "token_refused"


@dataclass
class Settings:
    """What to upload where; the field names are the keys of settings.json."""

    model_dir: Path
    repo_id: str
    private: bool | None = None  # None: create as private, but take an existing repository as it is
    revision: str = "main"
    token_file: Path | None = None
    delete_token_file: bool = False
    result: Path | None = None
    endpoint: str | None = None
    commit_message: str = "Upload model and tokenizer"
    hf_token: str | None = None  # from the command line only


def parse_arguments(argv: list[str]) -> Settings:
    """Settings from the command line or from the file that --settings names."""
    parser = argparse.ArgumentParser(
        description="Upload a model and its tokenizer to a Hugging Face Hub and verify what arrived.",
        epilog="Exit codes: 0 uploaded or nothing to do, 2 wrong input, 3 the token is missing, was refused "
        "or may not write, 1 anything else. The token comes from --token_file, else HF_TOKEN, else the file "
        "that `hf auth login` wrote. For an endpoint with plain http (a test Hub), Xet is off unless "
        "HF_HUB_DISABLE_XET says otherwise.",
    )
    # fmt: off
    add = parser.add_argument
    add("--input_tokenizer_and_model_dir", type=Path, metavar="DIR", help="what to upload")
    add("--repo_id", metavar="OWNER/NAME", help="where to; created if missing")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private", action="store_true", default=None, dest="private",
        help="create a private repository (the default; older versions of this script created public ones), "
        "and refuse to upload if the repository exists and is public")
    visibility.add_argument(
        "--public", action="store_false", default=None, dest="private", help="create a public repository")
    add("--revision", default="main", help="branch, created if missing (default: main)")
    add("--commit_message", default=Settings.commit_message, metavar="TEXT", help="(default: %(default)s)")
    add("--token_file", type=Path, metavar="FILE", help="file that holds the token")
    add("--hf_token", metavar="TOKEN",
        help="NOT SAFE: every user of this machine can read it from the process list; use --token_file")
    add("--endpoint", metavar="URL", help="another Hub than HF_ENDPOINT or https://huggingface.co")
    add("--result", type=Path, metavar="FILE", help="write what was uploaded as JSON")
    add("--settings", type=Path, metavar="FILE", help="take everything from this JSON file instead")
    # fmt: on
    values = vars(parser.parse_args(argv))
    settings_file, values["model_dir"] = values.pop("settings"), values.pop("input_tokenizer_and_model_dir")
    if settings_file:
        return read_settings(settings_file)
    if not values["model_dir"] or not values["repo_id"]:
        parser.error("give --input_tokenizer_and_model_dir and --repo_id, or --settings")  # exits with 2
    return Settings(**values)


def read_settings(path: Path) -> Settings:
    """settings.json, checked: unknown keys and wrong types are refused by name."""
    texts = ("model_dir", "repo_id", "revision", "token_file", "result", "endpoint", "commit_message")
    types = {**dict.fromkeys(texts, str), "private": bool, "delete_token_file": bool}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read the settings file {path}: {error}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path} must hold one JSON object")
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
    """The token given for this run and where it came from; None: nothing given, see default_token."""
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
            raise BadToken(f"cannot read the token from {source}: {error}") from error
    elif os.environ.get("HF_TOKEN"):
        token, source = os.environ["HF_TOKEN"], "the environment variable HF_TOKEN"
    else:
        return None, ""
    token = token.strip()
    # An HTTP library would print a malformed header value, token included, in its own error message.
    if not re.fullmatch(r"[!-~]+", token):
        raise BadToken(f"{source} holds no token: it is empty or has spaces or other foreign characters")
    return token, source


def default_token() -> tuple[str, str]:
    """The token that `hf auth login` stored, and where."""
    from huggingface_hub import constants, get_token

    token, path = get_token(), constants.HF_TOKEN_PATH
    if not token:
        raise BadToken(
            f"no Hub token: give --token_file, set HF_TOKEN, or run `hf auth login` (writes {path})"
        )
    return token, f"the file {path}"


def check_repo_id(repo_id: str) -> None:
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or repo_id.endswith(".git"):
        raise BadInput(
            f"repo_id '{repo_id}' is not of the form OWNER/NAME: both use letters, digits, '-', '_' and '.', "
            "begin and end with a letter or digit, and have no '--' or '..' (example: my-org/my-model)"
        )


def check_token(api: Any, source: str, repo_id: str) -> None:
    """Ask the Hub who we are, so that a bad token is found before anything is hashed or sent."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        account = api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise BadToken(
            f"the Hub at {api.endpoint} refused the token (401). It came from {source}. It may be mistyped, "
            "expired or for another Hub: create one with write access at "
            "https://huggingface.co/settings/tokens and put it there."
        ) from error
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    print(f"Signed in to {api.endpoint} as {account['name']} with the token from {source}")
    if role == "read":
        raise BadToken(
            f"the token from {source} (user {account['name']}) is read-only, but uploading to "
            f"{repo_id} needs one with write access: create it at https://huggingface.co/settings/tokens"
        )


def prepare_repo(api: Any, settings: Settings) -> None:
    """Create repository and branch where missing; never change the visibility of an existing repository."""
    wanted_private = settings.private is not False
    if not api.repo_exists(settings.repo_id):
        api.create_repo(settings.repo_id, private=wanted_private, exist_ok=True)
        print(f"Created the {'private' if wanted_private else 'public'} repository {settings.repo_id}")
    elif wanted_private and not api.model_info(settings.repo_id).private:
        if settings.private:
            raise BadInput(
                f"{settings.repo_id} exists and is public, but this upload must be private. Nothing was "
                "uploaded: choose another repo_id, make it private on the Hub, or allow public (--public)"
            )
        print(f"WARNING: {settings.repo_id} exists and is public: so is this upload", file=sys.stderr)
    if not api.revision_exists(settings.repo_id, settings.revision):
        api.create_branch(settings.repo_id, branch=settings.revision, exist_ok=True)
        print(f"Created the branch {settings.revision}")


def remote_files(api: Any, repo_id: str, revision: str) -> dict[str, Any]:
    entries = api.list_repo_tree(repo_id, revision=revision, recursive=True)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}  # folders have none


def upload(api: Any, settings: Settings, files: list[LocalFile]) -> tuple[str, bool]:
    """Bring the files to the Hub; returns the commit and whether it is a new one."""
    head = api.model_info(settings.repo_id, revision=settings.revision).sha
    present = remote_files(api, settings.repo_id, head)
    if not any(difference(file, present.get(file.path)) for file in files):
        return head, False
    commit = api.upload_folder(
        repo_id=settings.repo_id,
        folder_path=settings.model_dir,
        revision=settings.revision,
        commit_message=settings.commit_message,
        ignore_patterns=list(IGNORED),
    )
    return commit.oid, True


def verify(api: Any, repo_id: str, commit: str, files: list[LocalFile]) -> None:
    """Compare every file with what the commit holds, one printed line each."""
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
            + "\nDid something write to the directory meanwhile? Run this again: only these files are resent."
        )


def run(settings: Settings, paths: list[Path], skipped: list[str], token: str, source: str) -> None:
    """Sign in, upload, verify, report."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    check_token(api, source, settings.repo_id)
    with ThreadPoolExecutor(max_workers=4) as pool:
        files = list(pool.map(lambda path: hash_file(settings.model_dir, path), paths))
    prepare_repo(api, settings)
    commit, is_new = upload(api, settings, files)
    verify(api, settings.repo_id, commit, files)

    url = f"{api.endpoint}/{settings.repo_id}"
    if settings.result:
        listed = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in files]
        result = {"repo_id": settings.repo_id, "revision": commit, "url": url, "files": listed}
        settings.result.parent.mkdir(parents=True, exist_ok=True)
        write_json(settings.result, {**result, "skipped": skipped, "new_commit": is_new})
    if skipped:
        print(f"Skipped {len(skipped)} file(s): {', '.join(skipped)}")
    size = f"{len(files)} files ({sum(file.size for file in files) / 1e6:.1f} MB)"
    if is_new:
        print(f"Uploaded {size} to {url} at {commit}")
    else:
        print(f"Nothing changed: {size} are already at {url} at {commit}; no new commit was made")


def explain(error: BaseException, endpoint: str) -> UploadError | None:
    """Translate what huggingface_hub raises into something to act on; None for what nobody foresaw."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = " ".join(str(error).split())
    if status == 403 and re.search("storage (limit|patterns)", said):
        return UploadError(
            f"the Hub at {endpoint} has no more room for this account: {said}\nFree space there, upgrade its "
            "plan, or use a public repository or another owner.",
            "disk_full",
        )
    if status in (401, 403):
        return BadToken(
            f"the Hub at {endpoint} does not allow this token to do that ({status}): {said}\nUse a token "
            "with write access to the repository's owner, or a repo_id whose owner the token may write to."
        )
    if status is not None:
        kind = "hub_away" if status in (408, 429) or status >= 500 else None
        return UploadError(f"the Hub at {endpoint} answered {status}: {said}\nRun this again to go on.", kind)
    if isinstance(error, ImportError):
        text = f"{error}. Activate the environment that has it; this is {sys.executable}"
        return UploadError(text, "environment")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UploadError(f"{error.strerror}: {error.filename or 'a file'}", "disk_full")
    if isinstance(error, OSError) and error.filename:
        return BadInput(f"{error.strerror}: {error.filename}", "missing_path")
    # By name, because the HTTP library is httpx in huggingface_hub 1.x and httpx2 in 2.x.
    if {kind.__name__ for kind in type(error).__mro__} & {"TransportError", "ConnectionError"}:
        return UploadError(
            f"cannot reach the Hub at {endpoint}: {said}\nCheck HF_ENDPOINT (--endpoint), HF_HUB_OFFLINE, "
            "the proxy variables, and whether this node has access to that network; then run this again.",
            "hub_away",
        )
    # An upload thread's error arrives wrapped in a RuntimeError without details.
    return explain(error.__cause__, endpoint) if error.__cause__ else None


def prepare_environment(settings: Settings) -> str:
    """Set what huggingface_hub reads at import; returns the endpoint."""
    if settings.endpoint:
        os.environ["HF_ENDPOINT"] = settings.endpoint.rstrip("/")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if endpoint.startswith("http://"):  # a test Hub: Xet needs a storage service that those do not have
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return endpoint


def main(argv: list[str]) -> int:
    # For a job's log file: lines in the order of events, and no failure over the letters of a file name.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    token, endpoint, reason = None, "", None
    try:
        settings = parse_arguments(argv)
        # What explains a failure lies beside the result; Slurm may run a job again in the same place.
        if settings.result:
            reason = settings.result.with_name("reason.json")
            reason.unlink(missing_ok=True)
        # Before all checks: a token file that is to be deleted must not be left behind.
        token, source = read_token(settings)
        check_repo_id(settings.repo_id)
        try:
            paths, skipped = find_files(settings.model_dir)
            check_model(settings.model_dir, paths)
        except NotAModel as error:
            raise BadInput(str(error), "missing_path") from None
        endpoint = prepare_environment(settings)
        if token is None:
            token, source = default_token()
        run(settings, paths, skipped, token, source)
        return 0
    except Exception as error:
        known = error if isinstance(error, UploadError) else explain(error, endpoint)
        text = str(known) if known else traceback.format_exc()
        text = text.replace(token, "[token]") if token else text
        print(f"upload.py: {text}" if known else text, file=sys.stderr)
        if known and reason and reason.parent.is_dir():
            write_json(reason, known.as_json(text))
        return known.exit_code if known else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
