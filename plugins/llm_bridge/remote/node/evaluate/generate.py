"""Generate answers with one model: ``python node.pyz evaluate-generate FILE``, started by stages/evaluate.py.

It is a process of its own for each model, so that its GPU memory is free again afterwards.

verl's own generation (verl/trainer/main_generation_server.py of 0.9.1) is not used: it needs a Ray cluster and rollout
servers on GPUs, has no seed, and keeps of an answer neither the tokens nor the reason of its end. The engine below it
is used instead: vLLM's offline engine, where it is installed and there are GPUs. Else transformers' ``generate``, which
also runs on CPUs.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_bridge.remote.node.common.job_io import Settings, log_line

BATCH = 32
# Log lines while transformers generates; vLLM has a progress bar of its own.
_LINES = 20


class Answer(NamedTuple):
    """Answer of a model.

    Attributes:
        text: As verl's reward gets it, without special tokens.
        tokens: Number of tokens, with the one that ends it.
        cut: True if it was ended by ``max_tokens``.
    """

    text: str
    tokens: int
    cut: bool


# Token ids of one answer, and its ``cut``.
Raw = tuple[Sequence[int], bool]


def engine_for(device: str) -> str:
    """Return the name of the engine on this node: ``vllm`` or ``transformers``."""
    return "vllm" if device == "cuda" and importlib.util.find_spec("vllm") else "transformers"


def generate(settings: Settings) -> list[list[Answer]]:
    """Return the answers to each prompt.

    Args:
        settings: ``model`` and ``adapter_base`` (the base model's directory if ``model`` is a LoRA adapter),
            ``tokenizer``, ``prompts`` (token ids), ``samples``, ``temperature``, ``top_p``, ``max_tokens``, ``seed``,
            ``device``, ``gpus`` and ``engine``.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        settings["tokenizer"], trust_remote_code=settings["trust_remote_code"]
    )
    ends = end_tokens(settings, tokenizer)
    engine = _vllm if settings["engine"] == "vllm" else _transformers
    found = engine(settings, tokenizer, ends)
    return [
        [Answer(tokenizer.decode(ids, skip_special_tokens=True), len(ids), cut) for ids, cut in answers]
        for answers in found
    ]


def end_tokens(settings: Settings, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: those of the model's generation config, and the tokenizer's."""
    from transformers import GenerationConfig

    try:
        own = GenerationConfig.from_pretrained(
            settings["adapter_base"] or settings["model"], local_files_only=True
        )
    except OSError:  # the file is optional
        own = None
    given = own.eos_token_id if own else None
    ids = [*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id]
    return sorted({int(token) for token in ids if token is not None})


def until_end(ids: Sequence[int], ends: Sequence[int], limit: int) -> Raw:
    """Return the tokens of an answer up to the one that ends it, without the padding that follows.

    Args:
        ids: Tokens that a model has generated.
        ends: Tokens that end an answer.
        limit: Number of tokens at most.
    """
    for number, token in enumerate(ids[:limit]):
        if token in ends:
            return ids[: number + 1], False
    return ids[:limit], True


def _vllm(settings: Settings, tokenizer: Any, ends: list[int]) -> list[list[Raw]]:
    from vllm import LLM, SamplingParams

    base, prompts = settings["adapter_base"], settings["prompts"]
    more: dict[str, Any] = {}
    request = None
    if base:
        from vllm.lora.request import LoRARequest

        rank = json.loads(Path(settings["model"], "adapter_config.json").read_text(encoding="utf-8"))["r"]
        more = {"enable_lora": True, "max_lora_rank": max(16, rank)}
        request = LoRARequest("adapter", 1, settings["model"])
    llm = LLM(
        model=base or settings["model"],
        tokenizer=settings["tokenizer"],
        trust_remote_code=settings["trust_remote_code"],
        tensor_parallel_size=max(1, settings["gpus"]),
        seed=settings["seed"],
        max_model_len=max(map(len, prompts)) + settings["max_tokens"],
        **more,
    )
    sampling = SamplingParams(
        n=settings["samples"],
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        max_tokens=settings["max_tokens"],
        seed=settings["seed"],
        stop_token_ids=ends,
    )
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, lora_request=request)
    return [
        [(list(answer.token_ids), answer.finish_reason == "length") for answer in output.outputs]
        for output in outputs
    ]


def _transformers(settings: Settings, tokenizer: Any, ends: list[int]) -> list[list[Raw]]:
    import torch
    from transformers import GenerationConfig

    model = _load(settings)
    sampled = settings["temperature"] > 0
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0] if ends else 0
    # Each field is set, because generate() takes the model's own value for one that is missing.
    decoding = GenerationConfig(
        do_sample=sampled,
        temperature=settings["temperature"] if sampled else 1.0,
        top_p=settings["top_p"] if sampled else 1.0,
        top_k=0 if sampled else 50,
        repetition_penalty=1.0,
        num_return_sequences=settings["samples"],
        max_new_tokens=settings["max_tokens"],
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    prompts: list[list[int]] = settings["prompts"]
    size = max(1, BATCH // settings["samples"])
    found: list[list[Raw]] = []
    report = _every(len(prompts))
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in part], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in part], device=model.device
        )
        torch.manual_seed(settings["seed"] + start)
        with torch.inference_mode():
            made = model.generate(input_ids=ids, attention_mask=mask, generation_config=decoding)
        answers = [until_end(row, ends, settings["max_tokens"]) for row in made[:, width:].tolist()]
        each = settings["samples"]
        found += [answers[i : i + each] for i in range(0, len(answers), each)]
        report(len(found))
    return found


def _every(total: int) -> Callable[[int], None]:
    step, reported = max(1, total // _LINES), [0]

    def report(done: int) -> None:
        if done - reported[0] >= step or done == total:
            reported[0] = done
            log_line(f"answered {done} of {total} prompts")

    return report


def _load(settings: Settings) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    cuda = settings["device"] == "cuda"
    model = AutoModelForCausalLM.from_pretrained(
        settings["adapter_base"] or settings["model"],
        dtype=torch.bfloat16 if cuda else torch.float32,
        trust_remote_code=settings["trust_remote_code"],
    )
    if settings["adapter_base"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, settings["model"])
    return model.to("cuda" if cuda else "cpu").eval()


def main() -> None:
    """Run the program."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = generate(settings)
    Path(settings["answers"]).write_text(json.dumps(answers), encoding="utf-8")
