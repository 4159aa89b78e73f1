"""verl's own loader with the settings that the program ppo makes of a recipe's reward."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testing.paths import PLUGINS
from tests.unit.remote.node.support import ppo_settings

# In a thread, as verl calls it.
PROGRAM = """
import asyncio, inspect, json, sys
from concurrent.futures import ThreadPoolExecutor
from verl.trainer.ppo.reward import get_custom_reward_fn
from llm_bridge.remote.node.common import job_io
from llm_bridge.remote.node.rewards import function
from llm_bridge.remote.node.stages import ppo

settings = json.load(open(sys.argv[1]))
_, config = ppo.compose(settings)
function.write_files(settings["reward"], job_io.attempt())
score = get_custom_reward_fn(config)
call = dict(data_source="mine", solution_str="so #### 5", ground_truth="5", extra_info={})
if inspect.iscoroutinefunction(score):
    result = asyncio.run(score(**call))
else:
    result = ThreadPoolExecutor(1).submit(score, **call).result()
print("RESULT", json.dumps(result))
"""
OWN = """
async def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0, **kwargs):
    return {"score": 1.0 + bonus}
"""


@pytest.mark.parametrize(
    ("reward", "result"),
    [
        ({"terms": [{"name": "own", "options": {"bonus": 0.5}}], "files": {"own": OWN}}, {"score": 1.5}),
        ({"terms": [{"name": "math"}]}, 1.0),
        (
            {"terms": [{"name": "gsm8k"}, {"name": "own", "weight": 0.5}], "files": {"own": OWN}},
            {"score": 1.5, "reward_gsm8k": 1.0, "reward_own": 1.0},
        ),
    ],
)
def test_verl_loads_and_calls_the_reward_of_a_recipe(
    reward: dict[str, Any], result: Any, cluster_python: str, tmp_path: Path
) -> None:
    verl = {"trainer.total_epochs": 1, "trainer.save_freq": 1}
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(ppo_settings(reward=reward, verl=verl)))
    done = subprocess.run(
        [cluster_python, "-c", PROGRAM, str(settings)],
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.split("RESULT ")[1]) == result
