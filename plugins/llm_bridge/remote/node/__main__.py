"""Run one program of a job: ``python node.pyz PROGRAM ARGUMENT...``."""

from __future__ import annotations

import importlib
import sys

# Program -> the module whose main() it runs. Modules are imported on demand: most programs must start in a Python that
# has the standard library only.
PROGRAMS = {
    "prepare": "stages.prepare",
    "sft": "stages.sft",
    "tune": "stages.tune",
    "ppo": "stages.ppo",
    "try-reward": "rewards.trial_calls",
    "reward-math": "rewards.math_verify",
    "merge": "stages.merge",
    "evaluate": "stages.evaluate",
    "evaluate-generate": "evaluate.generate",
    "evaluate-score": "evaluate.score_calls",
    "upload": "hub.upload",
    "preflight": "preflight.run",
    "doctor": "preflight.doctor",
    "preflight-tensors": "preflight.tensors",
    "preflight-all-reduce": "preflight.all_reduce",
    "ray-head-guard": "ray.head_guard",
    "ray-node-agent": "ray.node_agent",
    "ray-cli": "ray.ray_cli",
}


def main() -> None:
    """Run the program that the command line names; its own arguments stay in ``sys.argv``."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        sys.exit(f"usage: python node.pyz PROGRAM ARGUMENT...; PROGRAM is one of {', '.join(PROGRAMS)}")
    sys.argv[:2] = [name]
    module = importlib.import_module(f"llm_bridge.remote.node.{PROGRAMS[name]}")
    sys.exit(module.main())


if __name__ == "__main__":
    main()
