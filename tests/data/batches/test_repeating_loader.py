"""A loader that ends after its epochs: what it yields, its length after a resume, and order from epoch to epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modlib.data.batches.fingerprint import batch_fingerprint
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader import DataLoader, MicroBatches, RepeatingDataLoader
from modlib.data.batches.sampler import ShuffledSampler
from modlib.runtime.errors import ConfigError

NUM_SAMPLES = 22
WINDOWS = np.arange(NUM_SAMPLES)[:, None] * 100 + np.arange(4)


class Samples:
    """Windows in memory whose first token tells which they are."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> np.ndarray:
        return WINDOWS[index]


def named_collate(samples: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    windows = torch.from_numpy(np.stack(list(samples)))
    ids = windows[:, :-1].contiguous()
    return {"input_ids": ids, "attention_mask": (ids % 3 > 0).long(), "scale": ids.float() / 7}, windows[
        :, 1:
    ].contiguous()


def loader(**settings: Any) -> DataLoader:
    settings = {"num_epochs": 3, "layout": BatchLayout(2, 2), **settings}
    return RepeatingDataLoader(
        dataset=Samples(),
        sampler=ShuffledSampler(seed=4, num_samples=NUM_SAMPLES),
        collate=named_collate,
        **settings,
    )


def seen(steps: list[MicroBatches]) -> list[int]:
    return [int(row[0]) // 100 for step in steps for inputs, _ in step for row in inputs["input_ids"]]  # type: ignore[index,call-overload]


@pytest.mark.parametrize("settings", [{}, {"prefetch": 0}, {"num_workers": 2}], ids=["thread", "none", "workers"])
def test_it_ends_after_its_epochs_and_goes_on_anywhere(settings: dict[str, Any]) -> None:
    with loader(**settings) as whole:
        assert len(whole) == 3 * NUM_SAMPLES // 4 == 16
        steps = list(whole.iterate(0))
        assert len(steps) == 16
        prints = [batch_fingerprint(step) for step in steps]
        for start in (1, 5, 6, 15, 16):  # in an epoch, at its end, after the last step
            assert [batch_fingerprint(step) for step in whole.iterate(start)] == prints[start:]
    order = seen(steps)
    for epoch in range(2):
        assert sorted(order[epoch * NUM_SAMPLES : (epoch + 1) * NUM_SAMPLES]) == list(range(NUM_SAMPLES))


def test_epochs_are_reshuffled_or_all_alike() -> None:
    with loader() as reshuffled, loader(reshuffle_after_epoch=False) as alike:
        orders = [seen(list(each.iterate(0))) for each in (reshuffled, alike)]
    first, second = orders[0][:NUM_SAMPLES], orders[0][NUM_SAMPLES : 2 * NUM_SAMPLES]
    assert first != second
    assert orders[1] == (first * 3)[: len(orders[1])]


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_named_inputs_are_the_same_from_threads_and_workers(start_method: str) -> None:
    with loader(prefetch=0) as plain, loader(num_workers=1, start_method=start_method) as workers:
        expected, found = list(plain.iterate(12)), list(workers.iterate(12))
    assert len(expected) == 4
    for ours, theirs in zip(expected, found, strict=True):
        assert len(ours) == 2
        for (inputs, targets), (worker_inputs, worker_targets) in zip(ours, theirs, strict=True):
            assert isinstance(inputs, dict)
            assert isinstance(worker_inputs, dict)
            assert inputs.keys() == worker_inputs.keys()
            assert targets.shape == (2, 3)
            assert torch.equal(targets, worker_targets)
            for name in inputs:
                assert inputs[name].dtype == worker_inputs[name].dtype
                assert torch.equal(inputs[name], worker_inputs[name])
        assert batch_fingerprint(ours) == batch_fingerprint(theirs)
    changed = [({**inputs, "scale": inputs["scale"] + 1}, targets) for inputs, targets in expected[0]]  # type: ignore[index,dict-item]
    assert batch_fingerprint(changed) != batch_fingerprint(expected[0])


def test_too_many_steps_and_wrong_numbers() -> None:
    with loader() as repeating:
        repeating.require_steps(16)
        with pytest.raises(ConfigError) as caught:
            repeating.require_steps(17)
        assert caught.value.problems == [
            "num_steps (17) must be at most 16, the steps of num_epochs (3) over 22 windows at 4 per step; set "
            "num_steps = 16, or num_epochs = 4"
        ]
        with pytest.raises(
            ConfigError, match=r"start_step \(17\) must be at most the loader's 16 steps; raise num_epochs"
        ):
            next(repeating.iterate(17))
    with pytest.raises(ConfigError, match=r"num_epochs \(0\) must be at least 1; set it to 1 or more"):
        loader(num_epochs=0)


def test_a_plain_loader_has_no_end() -> None:
    with DataLoader(
        dataset=Samples(),
        sampler=ShuffledSampler(seed=4, num_samples=NUM_SAMPLES),
        collate=named_collate,
        layout=BatchLayout(4),
    ) as endless:
        assert next(endless.iterate(10**9)) is not None
