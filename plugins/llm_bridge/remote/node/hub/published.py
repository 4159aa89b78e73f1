"""The score of the model that is on the Hub already, from the metadata of its model card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.hub import model_card, upload_errors

_ADVICE = "Set publish to always or approval for one run, which publishes a model with its score"


def score(repo_id: str, metric: str, data_hash: str, conditions: str) -> dict[str, Any]:
    """Return ``{"exists", "score", "note"}`` of the published model.

    Args:
        repo_id: The repository.
        metric: Metric of this evaluation.
        data_hash: Hash of its data; a score on other data says nothing about this one.
        conditions: Hash of its reward, rows and decoding, for the same reason.

    Raises:
        JobError: The Hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        return at(api, repo_id, "main", metric, data_hash, conditions)
    except Exception as error:
        # The Hub answers 401 or 403 also where the token may not read a repository that exists.
        if isinstance(error, RepositoryNotFoundError) and error.response.status_code == 404:
            return {"exists": False, "score": None, "note": f"the Hub has no repository {repo_id}"}
        known = upload_errors.as_upload_error(error, api.endpoint)
        raise JobError(
            f"publish.better_than: cannot read the model card of {repo_id}: {known or error}",
            retry=known is None or known.exit_code == upload_errors.UploadError.exit_code,
            kind=known.kind if known else "hub_unavailable",
        ) from error


def at(
    api: Any, repo_id: str, revision: str, metric: str, data_hash: str, conditions: str | None
) -> dict[str, Any]:
    """Return the same at one revision of a repository; errors of the Hub pass through.

    Args:
        api: An ``HfApi``.
        repo_id: As for :func:`score`.
        revision: Branch or commit.
        metric: As for :func:`score`.
        data_hash: As for :func:`score`.
        conditions: As for :func:`score`.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        # Not through the cache: without the Hub, huggingface_hub takes an older card from there.
        with tempfile.TemporaryDirectory() as directory:
            card = api.hf_hub_download(repo_id, model_card.CARD, revision=revision, local_dir=directory)
            text = Path(card).read_text("utf-8", "replace")
    except RemoteEntryNotFoundError:
        # The Hub makes .gitattributes. An upload that did not end may have created the repository.
        if set(api.list_repo_files(repo_id, revision=revision)) <= {".gitattributes"}:
            return {"exists": False, "score": None, "note": f"{repo_id} is empty"}
        return {"exists": True, "score": None, "note": f"{repo_id} has no model card. {_ADVICE}"}
    return from_card(repo_id, text, metric, data_hash, conditions)


def compare(model: str, own: dict[str, Any], published: dict[str, Any] | None) -> tuple[bool, str]:
    """Return True if a model is certainly better than the published one, and what was compared.

    Args:
        model: Name of the model, for the text.
        own: Its part of the evaluation's ``models``.
        published: Result of :func:`score`; None where it is not known.
    """
    if not published:
        return False, "the score of the published model is not known"
    if not published["exists"]:
        return True, f"no model is published yet: {published['note']}"
    if published["score"] is None:
        return False, f"the score of the published model is not known: {published['note']}"
    low, high = own["interval"]
    holds = low > published["score"]
    certainly = "certainly" if holds else "not certainly"
    return holds, (
        f"the {model} is {certainly} better than the published model: its score is {own['score']:.4g} (95 % "
        f"interval {low:.4g} to {high:.4g}), and that of the published model {published['score']:.4g}"
    )


def from_card(repo_id: str, text: str, metric: str, data_hash: str, conditions: str | None) -> dict[str, Any]:
    """Return the same from the text of a model card."""
    from huggingface_hub import ModelCard

    # A person's card may have results that huggingface_hub cannot read.
    if not model_card.is_generated(text):
        note = (
            f"a person wrote the model card of {repo_id}, so llm-bridge does not replace it. Set "
            "publish.better_than to base or sft, or remove that card from the Hub"
        )
        return {"exists": True, "score": None, "note": note}
    data: Any = ModelCard(text, ignore_metadata_errors=True).data
    return from_results(repo_id, data.eval_results or [], metric, data_hash, conditions)


def from_results(
    repo_id: str, results: list[Any], metric: str, data_hash: str, conditions: str | None
) -> dict[str, Any]:
    """Return the same from the results of a model card: objects as ``huggingface_hub.EvalResult``."""
    same_metric = [result for result in results if metric in (result.metric_type, result.metric_name)]
    same_data = [
        result
        for result in same_metric
        if result.dataset_revision == data_hash and isinstance(result.metric_value, (int, float))
    ]
    comparable = [result for result in same_data if result.metric_config == conditions]
    if comparable:
        return {"exists": True, "score": float(comparable[0].metric_value), "note": ""}
    if same_data:
        note = (
            f"the model card of {repo_id} has {metric} with another reward or evaluate (rows, seed, samples, decoding) "
            "than this recipe, or with an older llm-bridge's"
        )
    elif same_metric:
        note = f"the model card of {repo_id} has {metric} on other data ({same_metric[0].dataset_revision})"
    else:
        note = f"the model card of {repo_id} has no {metric}"
    note = f"{note}. {_ADVICE}"
    return {"exists": True, "score": None, "note": note}
