from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.batches.fingerprint import batch_fingerprint
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader import DataLoader, MicroBatches
from modlib.data.batches.sampler import ShuffledSampler
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime.errors import ConfigError, DataError
from tests.data.conftest import MakePacked

SEQ_LEN = 4


class Numbers:
    """A dataset of known windows: window i is i repeated, so a batch tells which samples it holds."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full(SEQ_LEN + 1, index, np.uint16)


class Failing(Numbers):
    def __getitem__(self, index: int) -> np.ndarray:
        if index == 7:
            raise DataError("sample (7) must not be read; leave it out")
        return super().__getitem__(index)


class Slow(Numbers):
    def __getitem__(self, index: int) -> np.ndarray:
        time.sleep(0.02)
        return super().__getitem__(index)


def make_loader(
    dataset: Any,
    seed: int = 3,
    shuffle: bool = True,
    *,
    micro_batch_size: int,
    grad_accum_steps: int = 1,
    world_size: int = 1,
    **settings: Any,
) -> DataLoader:
    sampler = ShuffledSampler(seed=seed, shuffle=shuffle, num_samples=len(dataset))
    layout = BatchLayout(micro_batch_size, grad_accum_steps, world_size)
    return DataLoader(dataset=dataset, sampler=sampler, collate=LMCollator(), layout=layout, **settings)


def samples(micro_batches: MicroBatches) -> list[list[int]]:
    return [inputs[:, 0].tolist() for inputs, _ in micro_batches]


def steps(loader: DataLoader, start: int, count: int) -> list[str]:
    return [batch_fingerprint(batch) for batch in itertools.islice(loader.iterate(start), count)]


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=60)
def test_layout_over_ranks(world_size: int, micro: int, accumulation: int, epochs: int, extra: int) -> None:
    """Every position is read by exactly one rank, in the documented place; over epochs every sample equally often."""
    global_batch = world_size * micro * accumulation
    dataset = Numbers(global_batch * 2 + extra)
    loaders = [
        make_loader(dataset, world_size=world_size, rank=rank, micro_batch_size=micro, grad_accum_steps=accumulation)
        for rank in range(world_size)
    ]
    order = loaders[0].sampler.indices(0, epochs * len(dataset) + global_batch)
    num_steps = epochs * len(dataset) // global_batch
    for step in range(num_steps):
        by_rank = [samples(loader.batch(step)) for loader in loaders]
        in_order = [sample for a in range(accumulation) for rank in range(world_size) for sample in by_rank[rank][a]]
        assert in_order == order[step * global_batch : (step + 1) * global_batch].tolist()


@given(st.sampled_from([(1, 12, 1), (1, 3, 4), (2, 6, 1), (2, 1, 6), (3, 2, 2), (4, 3, 1), (6, 2, 1), (12, 1, 1)]))
def test_the_set_of_a_step_does_not_depend_on_how_it_is_cut(cut: tuple[int, int, int]) -> None:
    world_size, micro, accumulation = cut
    dataset = Numbers(50)
    for step in (0, 4, 11):
        found = []
        for rank in range(world_size):
            loader = make_loader(
                dataset, world_size=world_size, rank=rank, micro_batch_size=micro, grad_accum_steps=accumulation
            )
            found += [sample for micro_batch in samples(loader.batch(step)) for sample in micro_batch]
        one = make_loader(dataset, micro_batch_size=12)
        assert sorted(found) == sorted(samples(one.batch(step))[0])


@given(st.integers(1, 8), st.integers(1, 5), st.booleans())
@settings(max_examples=25)
def test_every_token_is_a_target_once_per_epoch(
    tmp_path_factory: Any, world_size: int, micro: int, shuffle: bool
) -> None:
    global_batch = world_size * micro
    windows = 4 * global_batch
    path = tmp_path_factory.mktemp("epoch") / "epoch.packed"
    with PackedFileWriter(path, vocab_size=60_000) as writer:
        writer.write(np.arange(windows * SEQ_LEN + 1))
    dataset = PackedDataset(path=str(path), seq_len=SEQ_LEN)
    for epoch in range(2):
        targets: list[int] = []
        for rank in range(world_size):
            loader = make_loader(dataset, shuffle=shuffle, world_size=world_size, rank=rank, micro_batch_size=micro)
            for step in range(4 * epoch, 4 * epoch + 4):
                targets += torch.cat([targets for _, targets in loader.batch(step)]).ravel().tolist()
        assert sorted(targets) == list(range(1, windows * SEQ_LEN + 1))


def test_batches_are_what_a_trainer_expects() -> None:
    loader = make_loader(Numbers(64), micro_batch_size=3, grad_accum_steps=2)
    with loader:
        micro_batches = next(loader.iterate())
    assert len(micro_batches) == 2
    for inputs, targets in micro_batches:
        assert inputs.shape == targets.shape == (3, SEQ_LEN)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
    assert loader.global_batch_size == 6
    assert loader.steps_per_epoch == pytest.approx(64 / 6)


@pytest.mark.parametrize(
    "settings", [{"prefetch": 0}, {"prefetch": 1}, {"prefetch": 5}, {"num_workers": 1}, {"num_workers": 2}]
)
def test_order_and_replay_are_the_same_for_every_way_to_load(make_packed: MakePacked, settings: dict[str, int]) -> None:
    dataset = PackedDataset(path=str(make_packed(101)), seq_len=5)  # 20 windows: an epoch ends inside step 3
    reference = make_loader(dataset, micro_batch_size=3, grad_accum_steps=2)
    expected = [batch_fingerprint(reference.batch(step)) for step in range(12)]
    assert len(set(expected)) == 12
    with make_loader(dataset, micro_batch_size=3, grad_accum_steps=2, **settings) as loader:
        assert steps(loader, 0, 8) == expected[:8]
        assert steps(loader, 2, 6) == expected[2:8]  # resumed, across the epoch's end
        assert steps(loader, 9, 3) == expected[9:]
        assert batch_fingerprint(loader.batch(4)) == expected[4]
        assert loader.wait_s > 0


def test_fingerprint_tells_batches_apart() -> None:
    tensor = torch.arange(6).reshape(2, 3)
    pair = (tensor, tensor + 1)
    assert batch_fingerprint([pair]) == batch_fingerprint([(tensor.clone(), tensor + 1)])
    others = [[(tensor, tensor)], [pair, pair], [(tensor.reshape(3, 2), tensor + 1)]]
    assert len({batch_fingerprint(batch) for batch in [[pair], *others]}) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"prefetch": 0},
        {},
        {"num_workers": 2},
        pytest.param({"num_workers": 1, "start_method": "spawn"}, marks=pytest.mark.slow),
    ],
)
def test_named_inputs_are_cut_into_micro_batches(settings: dict[str, Any]) -> None:
    dataset = Numbers(20)
    plain = make_loader(dataset, micro_batch_size=3, grad_accum_steps=2)
    order = ShuffledSampler(seed=3, num_samples=20)
    named = DataLoader(
        dataset=dataset, sampler=order, collate=LMCollator(attention_mask=True),
        layout=BatchLayout(3, 2), **settings,
    )  # fmt: skip
    with named:
        for step, micro_batches in enumerate(itertools.islice(named.iterate(), 8)):
            assert batch_fingerprint(micro_batches) == batch_fingerprint(named.batch(step))
            assert batch_fingerprint(micro_batches) != batch_fingerprint(plain.batch(step))
            for (inputs, targets), (ids, expected) in zip(micro_batches, plain.batch(step), strict=True):
                assert isinstance(inputs, dict)
                assert set(inputs) == {"input_ids", "attention_mask"}
                assert torch.equal(inputs["input_ids"], ids)
                assert torch.equal(inputs["attention_mask"], torch.ones(3, SEQ_LEN, dtype=torch.int64))
                assert torch.equal(targets, expected)


def test_fingerprint_of_named_inputs_does_not_depend_on_their_order() -> None:
    first, second = torch.arange(6).reshape(2, 3), torch.ones(2, 3, dtype=torch.int64)
    one = batch_fingerprint([({"a": first, "b": second}, second)])
    assert batch_fingerprint([({"b": second, "a": first}, second)]) == one
    assert batch_fingerprint([({"a": second, "b": first}, second)]) != one


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_state_is_left_alone(num_workers: int) -> None:
    """Else dropout would depend on how data is loaded, and on where a run was resumed."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with make_loader(Numbers(40), micro_batch_size=4, num_workers=num_workers) as loader:
        steps(loader, 0, 3)
        steps(loader, 5, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("settings", [{"prefetch": 0}, {}, {"num_workers": 2}])
def test_an_error_of_the_dataset_arrives_as_itself_at_its_step(settings: dict[str, int]) -> None:
    with make_loader(Failing(20), shuffle=False, micro_batch_size=2, **settings) as loader:
        batches = loader.iterate()
        for expected in ([0, 1], [2, 3], [4, 5]):
            assert samples(next(batches)) == [expected]
        with pytest.raises(DataError, match=r"^sample \(7\) must not be read; leave it out$"):
            next(batches)


@pytest.mark.parametrize("settings", [{}, {"num_workers": 1}])
def test_data_changed_during_the_run_stops_it(make_packed: MakePacked, settings: dict[str, int]) -> None:
    path = make_packed(2000)
    dataset = PackedDataset(path=str(path), seq_len=5)
    with make_loader(dataset, micro_batch_size=2, **settings) as loader:
        batches = loader.iterate()
        next(batches)
        with open(path, "ab") as file:
            file.write(b"x")
        with pytest.raises(DataError, match="must stay the"):
            for _ in itertools.islice(batches, 10):
                pass


def data_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("modlib-data")]


def leave_by_break(loader: DataLoader) -> None:
    for _ in loader.iterate():
        break


def leave_by_error(loader: DataLoader) -> None:
    def fail() -> None:
        with loader:
            for _ in loader.iterate():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def leave_by_close(loader: DataLoader) -> None:
    batches = loader.iterate()
    next(batches)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match=r"ended by close\(\) or by a newer iterate\(\)"):
        next(batches)


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_error, leave_by_close])
def test_no_thread_is_left(leave: Callable[[DataLoader], None]) -> None:
    leave(make_loader(Numbers(20), micro_batch_size=2))
    assert data_threads() == []


def test_newer_iteration_ends_the_older() -> None:
    with make_loader(Numbers(20), micro_batch_size=2) as loader:
        older = loader.iterate()
        next(older)
        newer = loader.iterate(3)
        assert samples(next(newer)) == samples(loader.batch(3))
        with pytest.raises(RuntimeError, match="use the newer one"):
            next(older)
        assert samples(next(newer)) == samples(loader.batch(4))
    assert data_threads() == []


def test_wait_is_the_time_the_loop_waited() -> None:
    with make_loader(Slow(20), micro_batch_size=2, prefetch=1) as loader:
        batches = loader.iterate()
        next(batches)
        first = loader.wait_s
        assert first >= 0.04
        time.sleep(0.3)  # the work of a step: what is loaded meanwhile is not waited for
        next(batches)
        assert loader.wait_s - first < 0.03


def test_too_little_data_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError) as caught:
        make_loader(Numbers(23), world_size=3, micro_batch_size=4, grad_accum_steps=2)
    assert str(caught.value) == (
        "windows in the dataset (23) must be at least one global batch (24 = micro_batch_size 4 x grad_accum_steps 2 x "
        "3 processes); use more text, a shorter SEQ_LEN or a smaller batch"
    )


def test_wrong_numbers_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        make_loader(
            Numbers(9), num_workers=1, prefetch=0, micro_batch_size=0, rank=2, world_size=2, start_method="thread"
        )
    assert caught.value.problems == [
        "prefetch (0) must be at least 1; set it to 1 or more",
        "micro_batch_size (0) must be at least 1; set it to 1 or more",
        "rank (2) must be at least 0 and below world_size (2); check the launcher",
        "start_method ('thread') must be 'fork' or 'spawn'; choose one of them",
    ]
    with pytest.raises(ConfigError, match=r"start_step \(-1\) must be at least 0"):
        make_loader(Numbers(9), micro_batch_size=1).iterate(-1)


@pytest.mark.gpu
def test_batches_are_pinned_where_there_is_a_gpu(make_packed: MakePacked) -> None:
    dataset = PackedDataset(path=str(make_packed(200)), seq_len=5)
    for num_workers in (0, 1):
        with make_loader(dataset, micro_batch_size=2, num_workers=num_workers) as loader:
            inputs, targets = next(loader.iterate())[0]
            assert inputs.is_pinned()
            assert targets.is_pinned()
            assert inputs.cuda(non_blocking=True).tolist() == loader.batch(0)[0][0].tolist()


def test_path_of_the_test_file_is_not_needed(tmp_path: Path) -> None:
    """Loading does not depend on the working directory once the file is open."""
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with PackedFileWriter("relative.packed", vocab_size=100) as writer:
            writer.write(np.arange(50))
        dataset = PackedDataset(path="relative.packed", seq_len=5)
    finally:
        os.chdir(here)
    with make_loader(dataset, micro_batch_size=2) as loader:
        assert len(steps(loader, 0, 3)) == 3
