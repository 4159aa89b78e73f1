"""Rollout ``actor_rollout_ref.rollout.name=hf``: start of ``HFServer`` and transfer of new weights."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import ray
import torch
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry
from verl.workers.rollout.utils import ensure_async_iterator

from verl_cpu.platform import refuse_cuda


class HFReplica(RolloutReplica):
    """Server of one training worker, on the worker's node."""

    async def launch_servers(self) -> None:
        """Start the server.

        Raises:
            RuntimeError: The machine has CUDA devices.
            ValueError: A parallel size is not 1.
        """
        from verl_cpu.hf_server import HFServer  # imports transformers: only where a server is started

        refuse_cuda("actor_rollout_ref.rollout.name=hf")
        if self.world_size != 1:
            raise ValueError(
                "actor_rollout_ref.rollout.name=hf needs tensor_model_parallel_size, data_parallel_size and "
                f"pipeline_model_parallel_size of 1; their product is {self.world_size}"
            )
        node = await self.workers[0].__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
        server = (
            ray.remote(HFServer)
            .options(
                scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    node, soft=False
                ),
                num_cpus=0,
                name=_server_name(self.replica_rank, self.name_suffix),
                max_concurrency=self.max_concurrency,
            )
            .remote(self.config, self.model_config, self.replica_rank)
        )
        self.servers = [server]
        self._server_handle = server
        host, port = await server.get_server_address.remote()
        self._server_address = f"{host}:{port}"


class HFServerAdapter(base.BaseRollout):
    """Adapter of a training worker, which sends the weights of each step to its server through Ray."""

    def __init__(
        self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1, **_: Any
    ) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ.get("RANK", 0)) if replica_rank == -1 else replica_rank
        self.is_leader_rank = True  # each worker is its own replica
        self._handle: Any = None

    @property
    def _server(self) -> Any:
        if self._handle is None:
            self._handle = ray.get_actor(_server_name(self.replica_rank))
        return self._handle

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    @torch.no_grad()
    async def update_weights(
        self,
        weights: Generator[tuple[str, torch.Tensor], None, None],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        **_: Any,
    ) -> None:
        """Send all weights, in buckets of ``checkpoint_engine.update_weights_bucket_megabytes``.

        Args:
            weights: Tensors by name; consumed completely on every rank: gathering a sharded tensor is collective.
            global_steps: Training step of the weights.
            wire_format: Must be ``named_tensors``.

        Raises:
            ValueError: Another wire format.
        """
        if wire_format != "named_tensors":
            raise ValueError(
                f"actor_rollout_ref.rollout.name=hf needs wire_format=named_tensors, not {wire_format}"
            )
        limit = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        bucket: dict[str, torch.Tensor] = {}
        async for name, tensor in ensure_async_iterator(weights):
            # A copy: verl may use the tensor's memory again for the next one.
            bucket[name] = tensor.detach().to("cpu", copy=True)
            if sum(t.nbytes for t in bucket.values()) >= limit:
                await self._server.load_weights.remote(bucket)
                bucket = {}
        if bucket:
            await self._server.load_weights.remote(bucket)
        if global_steps is not None:
            await self._server.set_global_steps.remote(global_steps)


def _server_name(replica_rank: int, suffix: str = "") -> str:
    return f"hf_server_{replica_rank}{suffix}"


def register() -> None:
    """Register adapter and replica; verl's table of adapters has no public interface."""
    base._ROLLOUT_REGISTRY[("hf", "async")] = "verl_cpu.hf_rollout.HFServerAdapter"
    RolloutReplicaRegistry.register("hf", lambda: HFReplica)
