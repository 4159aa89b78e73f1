"""Rollout server with transformers' ``generate()``, many requests in one batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
import torch
from transformers import AutoModelForCausalLM
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.replica import TokenOutput

MAX_BATCH = 64  # requests; keeps padding and the key-value cache of one batch small


class Sampling(NamedTuple):
    """Sampling parameters; the requests of a batch have equal ones."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


@dataclass
class Request:
    """Prompt that waits for its answer: token ids and their log-probabilities."""

    sampling: Sampling
    prompt: list[int]
    answer: asyncio.Future[tuple[list[int], list[float]]]


class HFServer:
    """Server of one rollout replica; a Ray actor made by ``HFReplica``.

    Its methods are those that verl calls on a vLLM server (``verl/workers/rollout/replica.py`` and
    ``llm_server.py``). Not supported: images, tools' stop strings, LoRA, more than one device.
    """

    def __init__(self, config: Any, model_config: Any, replica_rank: int) -> None:
        self.config: RolloutConfig = omega_conf_to_dataclass(config, dataclass_type=RolloutConfig)
        model: HFModelConfig = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        self.replica_rank = replica_rank
        self.max_batch = min(self.config.max_num_seqs, MAX_BATCH)
        self.queue: list[Request] = []
        self.worker: asyncio.Task[None] | None = None
        self.busy = asyncio.Lock()  # held while the model generates or its weights change
        self.paused = False
        self.global_steps: int | None = None
        # float32: CPUs have no fast bfloat16
        self.model = AutoModelForCausalLM.from_pretrained(
            model.local_path,
            dtype=torch.float32,
            trust_remote_code=model.trust_remote_code,
            attn_implementation="sdpa",
        ).eval()
        self.pad, self.ends = _special_tokens(model)
        torch.manual_seed(self.config.seed + replica_rank)

    def get_server_address(self) -> tuple[str, int]:
        """Return a label for verl's load balancer; requests come through Ray, and nothing listens there."""
        return ray.util.get_node_ip_address().strip("[]"), 20000 + self.replica_rank

    async def generate(
        self, prompt_ids: Sequence[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        """Answer one prompt.

        Args:
            prompt_ids: Token ids of the prompt.
            sampling_params: With vLLM's names: max_tokens, temperature (0 is greedy), top_p, top_k, repetition_penalty,
                logprobs.
            request_id: Not used.

        Returns:
            The new token ids up to and including the first end token, and their log-probabilities under the
            distribution that was sampled from, as with vLLM's ``logprobs_mode=processed_logprobs``.
        """
        asked = dict(sampling_params)
        room = self.config.prompt_length + self.config.response_length - len(prompt_ids)
        new = asked.get("max_tokens") or asked.get("max_new_tokens") or min(self.config.response_length, room)
        sampling = Sampling(
            max(1, new),
            float(asked.get("temperature", 1.0)),
            float(asked.get("top_p", 1.0)),
            int(asked.get("top_k", -1)),
            float(asked.get("repetition_penalty", 1.0)),
        )
        request = Request(sampling, list(prompt_ids), asyncio.get_running_loop().create_future())
        self.queue.append(request)
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._answer_all())
        tokens, log_probs = await request.answer
        return TokenOutput(
            token_ids=tokens,
            log_probs=log_probs if asked.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps},
        )

    async def _answer_all(self) -> None:
        await self._requests_have_arrived()
        while self.queue:
            if self.paused:
                await asyncio.sleep(0.05)
                continue
            batch = [r for r in self.queue if r.sampling == self.queue[0].sampling][: self.max_batch]
            self.queue = [r for r in self.queue if not any(r is taken for taken in batch)]
            async with self.busy:
                try:
                    answers = await asyncio.to_thread(_generate, self, batch)
                except Exception as error:  # the callers must get every exception
                    for request in batch:
                        request.answer.set_exception(error)
                else:
                    for request, answer in zip(batch, answers, strict=True):
                        request.answer.set_result(answer)

    async def _requests_have_arrived(self) -> None:
        """Wait until the queue stops growing, 5 s at most.

        The requests of one step arrive over 1 to 2 s; starting at the first made several small batches.
        """
        deadline, seen = time.monotonic() + 5, -1
        while seen != len(self.queue) < self.max_batch and time.monotonic() < deadline:
            seen = len(self.queue)
            await asyncio.sleep(0.2)

    async def load_weights(self, weights: dict[str, torch.Tensor]) -> int:
        """Copy trained weights in; between batches, never during one.

        Args:
            weights: Tensors by name.

        Returns:
            The number of tensors.

        Raises:
            KeyError: The rollout's model has no such tensor.
        """
        async with self.busy:
            own = self.model.state_dict(keep_vars=True)
            if unknown := [name for name in weights if name not in own]:
                raise KeyError(f"the rollout's model has no {', '.join(unknown[:5])}")
            with torch.no_grad():
                for name, tensor in weights.items():
                    own[name].copy_(tensor)
        return len(weights)

    async def set_global_steps(self, global_steps: int) -> None:
        self.global_steps = global_steps

    async def wait_for_requests_to_drain(self) -> None:
        while self.queue or self.busy.locked():
            await asyncio.sleep(0.02)

    async def sleep(self) -> None:
        await self.wait_for_requests_to_drain()

    async def abort_all_requests(self, reject_request: bool = False) -> dict[str, Any]:
        self.paused = True
        return {"aborted_count": 0, "request_ids": []}

    async def resume_generation(self) -> None:
        self.paused = False

    # No memory is released on a CPU, so these have no effect.
    async def wake_up(self, tags: list[str] | None = None) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...

    async def start_profile(self, **_: Any) -> None: ...

    async def stop_profile(self, **_: Any) -> None: ...


def _special_tokens(model: HFModelConfig) -> tuple[int, set[int]]:
    """Return the padding token and the tokens that end an answer."""
    tokenizer, generation = model.tokenizer, model.generation_config
    ends = getattr(generation, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad, set(ends) if isinstance(ends, (list, tuple)) else {ends}


@torch.no_grad()
def _generate(server: HFServer, batch: list[Request]) -> list[tuple[list[int], list[float]]]:
    """Answer requests of equal sampling; return token ids and log-probabilities in the order of ``batch``."""
    sampling = batch[0].sampling
    width = max(len(request.prompt) for request in batch)
    left = [width - len(request.prompt) for request in batch]
    ids = torch.tensor(
        [[server.pad] * pad + request.prompt for pad, request in zip(left, batch, strict=True)]
    )
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in left])
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        how = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": max(sampling.top_k, 0),  # vLLM's -1 is transformers' 0: all tokens
        }
    output = server.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=server.pad,
        eos_token_id=sorted(server.ends),
        repetition_penalty=sampling.repetition_penalty,
        return_dict_in_generate=True,
        output_scores=True,
        **how,
    )
    tokens = output.sequences[:, width:]
    log_probs = torch.stack(
        [
            torch.log_softmax(scores.float(), -1).gather(1, tokens[:, i : i + 1])[:, 0]
            for i, scores in enumerate(output.scores)
        ],
        dim=1,
    )
    answers = []
    for row, row_log_probs in zip(tokens.tolist(), log_probs.tolist(), strict=True):
        length = next((i + 1 for i, token in enumerate(row) if token in server.ends), len(row))
        answers.append((row[:length], row_log_probs[:length]))
    return answers
