"""The tuner's choices, on measurements that a table stands in for: no GPU is here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llm_bridge.remote.node.verl import tuning
from llm_bridge.remote.node.verl.tuning import Candidate, Measured, Training

FIXED = Candidate(dynamic=False, size=8, checkpointing=True, offload=False)
TRAINING = Training(FIXED, share=64, max_length=512, packed=True, offloadable=True)

Peak = Callable[[Candidate], float]
Speed = Callable[[Candidate], float]


def peak(candidate: Candidate) -> float:
    """Memory as a GPU's would grow: weights and optimizer, and activations of each row."""
    rows = candidate.size // 512 if candidate.dynamic else candidate.size
    fixed = 2 if candidate.offload else 20
    return fixed + rows * (1 if candidate.checkpointing else 2)


def speed(candidate: Candidate) -> float:
    rows = candidate.size // 512 if candidate.dynamic else candidate.size
    gain = (1.0 if candidate.checkpointing else 1.3) * (1.2 if candidate.dynamic else 1.0)
    return 10_000 * gain * rows / (rows + 4) / (3 if candidate.offload else 1)


def played(
    tuned: Training, memory: float | None, peak: Peak = peak, speed: Speed = speed
) -> tuple[list[Measured], list[Candidate]]:
    """Return all measurements, and the candidates that were run, on a GPU of this memory."""
    measured: list[Measured] = []
    run = []
    while found := tuning.following(tuned, measured, memory):
        if isinstance(found, Candidate):
            run.append(found)
            needed = peak(found)
            if memory and needed > memory:
                found = Measured(found, problem=tuning.OUT_OF_MEMORY)
            else:
                found = Measured(found, speed(found), needed if memory else None, needed if memory else None)
        assert isinstance(found, Measured)
        measured.append(found)
        assert len(measured) < 100
    return measured, run


def test_the_recipes_settings_come_first_and_the_micro_batch_doubles_to_the_share_of_a_gpu() -> None:
    _, run = played(TRAINING, 1000)
    assert [candidate.size for candidate in run[:4]] == [8, 16, 32, 64]
    assert {candidate.checkpointing for candidate in run[:4]} == {True}
    assert [candidate.size for candidate in run[4:8]] == [8, 16, 32, 64]
    assert run[8:] == [Candidate(dynamic=True, size=64 * 512, checkpointing=False, offload=False)]


@pytest.mark.parametrize("share", [1, 6, 16, 24, 60, 97, 4096])
def test_every_micro_batch_divides_the_rows_of_a_gpu(share: int) -> None:
    own = FIXED._replace(size=1)
    _, run = played(TRAINING._replace(own=own, share=share), 200)
    fixed = [candidate.size for candidate in run if not candidate.dynamic]
    assert fixed and all(share % size == 0 for size in fixed)


def test_a_size_that_cannot_fit_by_two_smaller_ones_is_not_tried() -> None:
    measured, run = played(TRAINING, 60)
    assert not any(entry.problem == tuning.OUT_OF_MEMORY for entry in measured)
    unfit = [entry for entry in measured if entry.problem]
    assert [(entry.candidate.size, entry.candidate.checkpointing) for entry in unfit] == [
        (64, True),
        (32, False),
    ]
    assert unfit[0].problem == "would need about 84 GiB" and unfit[0].candidate not in run


def test_where_the_recipes_micro_batch_does_not_fit_smaller_ones_are_tried() -> None:
    measured, _ = played(TRAINING, 25)
    found = tuning.advice(TRAINING, measured, 25)
    fastest = tuning.best(measured, 25)
    assert fastest and TRAINING.rows(fastest.candidate) in (1, 2)
    assert found["now"] is None and found["settings"]
    assert found["text"].startswith("the recipe's settings do not fit (out of memory), ")


def test_weights_are_offloaded_only_where_nothing_fits_without() -> None:
    assert not any(candidate.offload for candidate in played(TRAINING, 60)[1])
    measured, _ = played(TRAINING, 15)
    found = tuning.advice(TRAINING, measured, 15)
    assert found["settings"]["engine.offload_policy"] is True
    never, _ = played(TRAINING._replace(offloadable=False), 15)
    assert tuning.best(never, 15) is None
    assert tuning.advice(TRAINING, never, 15)["settings"] == {}


def test_a_recipe_that_packs_by_tokens_is_tuned_by_tokens() -> None:
    own = Candidate(dynamic=True, size=8192, checkpointing=True, offload=False)
    _, run = played(TRAINING._replace(own=own), 1000)
    assert [candidate.size for candidate in run if candidate.dynamic][:3] == [8192, 16384, 32768]
    assert [candidate for candidate in run if not candidate.dynamic] == [
        Candidate(dynamic=False, size=64, checkpointing=False, offload=False)
    ]


def test_rows_that_are_padded_are_not_packed_by_tokens() -> None:
    assert not any(candidate.dynamic for candidate in played(TRAINING._replace(packed=False), 1000)[1])


def test_the_fastest_that_leaves_memory_is_recommended_with_the_settings_that_change() -> None:
    measured, _ = played(TRAINING, 60)
    found = tuning.advice(TRAINING, measured, 60)
    assert found["settings"] == {
        "data.use_dynamic_bsz": True,
        "data.max_token_len_per_gpu": 16 * 512,
        "model.enable_gradient_checkpointing": False,
    }
    assert found["text"] == (
        "6,667 tokens/s now, 12,480 tokens/s with: data.use_dynamic_bsz: true, data.max_token_len_per_gpu: 8192, "
        "model.enable_gradient_checkpointing: false"
    )


def test_settings_that_are_hardly_faster_are_not_recommended() -> None:
    measured, _ = played(TRAINING, 1000, speed=lambda candidate: 10_000 + candidate.size)
    found = tuning.advice(TRAINING, measured[:-1], 1000)
    assert found["settings"] == {}
    assert found["text"] == "10,008 tokens/s now; nothing that was measured is more than 3% faster"
    cut_off = tuning.advice(TRAINING, measured[:1], 1000, complete=False)
    assert cut_off["text"].endswith("faster; further settings were not measured")


def test_of_equal_speeds_the_one_with_the_least_memory_is_recommended() -> None:
    def flat(candidate: Candidate) -> float:
        return 5000 if candidate.size == 8 else 10_000

    measured, _ = played(TRAINING, 1000, speed=flat)
    assert tuning.advice(TRAINING, measured, 1000)["settings"] == {"data.micro_batch_size_per_gpu": 16}


def test_a_tuner_that_was_started_again_goes_on_where_it_was() -> None:
    whole, _ = played(TRAINING, 60)
    for cut in range(len(whole)):
        kept = [Measured.from_json(entry.as_json()) for entry in whole[:cut]]
        found = tuning.following(TRAINING, kept, 60)
        assert found == (whole[cut] if whole[cut].problem else whole[cut].candidate)


def test_verls_configuration_says_what_is_tuned() -> None:
    config: dict[str, Any] = {
        "data.train_batch_size": 256,
        "data.micro_batch_size_per_gpu": 16,
        "data.use_dynamic_bsz": False,
        "data.max_length": 512,
        "data.pad_mode": "no_padding",
        "model.enable_gradient_checkpointing": True,
        "model.use_remove_padding": True,
        "engine.strategy": "fsdp2",
        "engine.offload_policy": False,
        "engine.ulysses_sequence_parallel_size": 1,
    }
    found = tuning.training(config.get, gpus=8)
    assert found == Training(FIXED._replace(size=16), 32, 512, packed=True, offloadable=True)
    assert tuning.not_tunable(config.get) is None
    assert "engine.strategy is megatron" in str(
        tuning.not_tunable({**config, "engine.strategy": "megatron"}.get)
    )
