"""testing/local_cluster/verl_cpu as installed beside verl."""

from __future__ import annotations

import json
import os
import subprocess


def in_cluster_env(python: str, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", **variables}
    return subprocess.run([python, "-c", code], env=environ, capture_output=True, text=True, timeout=600)


def test_verl_takes_the_cpu_platform_its_engines_and_its_rollout(cluster_python: str) -> None:
    done = in_cluster_env(
        cluster_python,
        """
import json, verl
from verl.plugin.platform import get_platform
from verl.workers.engine import EngineRegistry
from verl.workers.rollout.replica import get_rollout_replica_class
from verl.workers.rollout.base import get_rollout_class
print(json.dumps([
    get_platform().device_name,
    EngineRegistry.get_engine_cls("language_model", "fsdp2").__name__,
    EngineRegistry.get_engine_cls("value_model", "fsdp2").__name__,
    get_rollout_replica_class("hf").__name__,
    get_rollout_class("hf").__name__,
]))""",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "cpu",
        "CPUEngineWithLMHead",
        "CPUEngineWithValueHead",
        "HFReplica",
        "HFServerAdapter",
    ], "nothing else may be printed"


def test_on_a_machine_with_gpus_it_never_comes_forward_and_refuses_when_asked(cluster_python: str) -> None:
    pretend = "import torch; torch.version.cuda = '13.0'; torch.cuda.is_available = lambda: True\n"
    chosen = "from verl.plugin.platform import get_platform; print(get_platform().device_name)"
    assert in_cluster_env(cluster_python, pretend + chosen).stdout == "cuda\n"
    asked = in_cluster_env(cluster_python, pretend + chosen, VERL_PLATFORM="cpu")
    assert asked.returncode != 0
    assert "VERL_PLATFORM=cpu runs on CPUs only and this machine has CUDA devices" in asked.stderr
