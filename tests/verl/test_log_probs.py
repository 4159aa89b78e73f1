"""The log-probabilities that verl's processes get from llm-bridge, beside verl's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from llm_bridge.remote.node.verl import trainer_config
from tests.unit.remote.node.support import sft_settings

COMPARE = """
import torch
from verl.utils import torch_functional
verls = torch_functional.logprobs_from_logits_v2
from llm_bridge.remote.node.verl.hooks import log_probs
ours = log_probs.log_probs_in_blocks
assert verls is not ours
log_probs.BLOCK = 7 * 11  # blocks of 7 rows, and a last one of 2

def both(function, logits, labels, weights):
    logits = logits.clone().requires_grad_()
    values = function(logits, labels)
    (gradient,) = torch.autograd.grad((values * weights).sum(), logits)
    return values, gradient

torch.manual_seed(0)
exact = {"rtol": 1e-5, "atol": 1e-6}
for dtype, tolerance in ((torch.float64, {"rtol": 1e-12, "atol": 1e-12}), (torch.float32, exact)):
    for shape in ((30,), (3, 10), (1,), (0,)):
        logits = 20 * torch.randn(*shape, 11, dtype=dtype)
        labels, weights = torch.randint(0, 11, shape), torch.randn(shape, dtype=dtype)
        if shape == (0,):  # verl's own function cannot stack nothing
            assert both(ours, logits, labels, weights)[1].shape == (0, 11)
            continue
        for mine, right in zip(both(ours, logits, labels, weights), both(verls, logits, labels, weights)):
            assert mine.dtype == right.dtype
            torch.testing.assert_close(mine, right, **tolerance)

# Logits of 16 bits, as the engines have them: numbers in float32, as verl's from logits in float32.
logits, labels, weights = torch.randn(30, 11).bfloat16(), torch.randint(0, 11, (30,)), torch.randn(30)
values, gradient = both(ours, logits, labels, weights)
right, right_gradient = both(verls, logits.float(), labels, weights)
assert values.dtype == torch.float32 and gradient.dtype == torch.bfloat16
torch.testing.assert_close(values, right, **exact)
torch.testing.assert_close(gradient.float(), right_gradient, rtol=0.01, atol=1e-3)
print("equal")
"""
IMPORT = """
import verl
from verl.utils.torch_functional import logprobs_from_logits
print(logprobs_from_logits.__globals__["logprobs_from_logits_v2"].__module__)
"""


def run(python: str, code: str, **variables: str) -> str:
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([python, "-c", code], env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_values_and_gradients_equal_those_of_verls_own_function(cluster_python: str, archive: Path) -> None:
    assert run(cluster_python, COMPARE, PYTHONPATH=str(archive)) == "equal"


def test_each_process_that_imports_verl_for_a_training_uses_them(cluster_python: str, archive: Path) -> None:
    variables = trainer_config.training_environment(sft_settings(), {}, Path())
    variables["PYTHONPATH"] = str(archive)  # as in the processes of a job, which run from it
    assert run(cluster_python, IMPORT, **variables) in trainer_config.IMPORTED_BY_VERL
