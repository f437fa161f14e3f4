"""Outputs: the same values whichever package holds them, each only where it is installed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.samplers.made import plain_view
from tests.support import SCHEMAS, batch_bits, order_of, random_trajectories, run_python, write_appends


@pytest.fixture
def view() -> Iterator[rc.View]:
    schema = SCHEMAS["nested-with-nulls"]()
    rng = np.random.default_rng(2)
    trajectories = random_trajectories(schema, rng, count=12)
    with rc.create_workspace("w", schema) as ws:
        write_appends(ws.writer(), trajectories, order_of(trajectories, rng))
        yield ws.view()


def _pairs(view: rc.View, output: Any, **options: Any) -> list[tuple[Any, Any]]:
    options = {"batch_size": 5, "seed": 0, "steps": 8, "fields": list(view.schema.by_path), **options}
    return list(zip(rc.Loader(view, output="numpy", **options), rc.Loader(view, output=output, **options), strict=True))


def _same(want: Any, got: Any) -> None:
    """Equal, but for the width of numbers, which JAX has a rule of its own for."""
    if isinstance(want, dict):
        assert list(want) == list(got)
        for name, value in want.items():
            _same(value, got[name])
    elif isinstance(want, list):
        assert want == got
    else:
        have = np.asarray(got)
        assert have.shape == want.shape
        assert np.array_equal(want.astype(have.dtype), have, equal_nan=have.dtype.kind == "f")


@pytest.mark.parametrize("ahead", [1, 3])
def test_jax_arrays_hold_what_numpy_arrays_do(view: rc.View, ahead: int) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    pairs = _pairs(view, "jax", ahead=ahead)
    gc.collect()
    for want, got in pairs:
        assert isinstance(got["action"], jax.Array) and isinstance(got.weight, jax.Array)
        _same(dict(want.items()), dict(got.items()))
        _same(dict(want.valid), dict(got.valid))
        _same(want.weight, got.weight)
        assert np.array_equal(want.ids, got.ids)


def test_jax_shares_the_memory_of_a_gather() -> None:
    pytest.importorskip("jax", reason="jax is not installed")
    batch = next(rc.Loader(plain_view(30), batch_size=16, seed=0, output="jax"))
    arena = batch._chunk._arena
    start = arena.ctypes.data
    assert start <= batch["observation"].unsafe_buffer_pointer() < start + arena.nbytes


@pytest.mark.parametrize("sampler", [rc.Prioritized(), rc.Sequence(4, inner=rc.Prioritized())], ids=["steps", "seq"])
def test_tensordicts_hold_what_batches_do(sampler: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed")
    view = plain_view(60, lost=False)
    plain = rc.Loader(view, sampler, batch_size=6, seed=0, output="torch")
    dicts = rc.Loader(view, sampler, batch_size=6, seed=0, output="tensordict")
    for _ in range(4):
        batch, got = next(plain), next(dicts)
        assert isinstance(got, tensordict.TensorDict)
        shape = (6,) if batch.mask is None else (6, 4)
        assert tuple(got.batch_size) == shape and got["ids"].shape == (*shape, 2)
        for name, value in batch.items():
            assert torch.equal(got[name].nan_to_num(), value.nan_to_num())
        assert torch.equal(got["valid", "next_observation"], batch.valid["next_observation"])
        if batch.mask is None:
            assert plain.update_priorities(batch.ids, batch["uid"]) == dicts.update_priorities(got["ids"], got["uid"])


def test_a_numpy_batch_makes_no_tensordict() -> None:
    pytest.importorskip("tensordict", reason="tensordict is not installed")
    with pytest.raises(errors.ArgumentError, match="torch"):
        next(rc.Loader(plain_view(20), batch_size=4, seed=0, output="numpy")).to_tensordict()


@pytest.mark.parametrize("kind", ["torch", "jax", "tensordict"])
def test_a_package_that_is_not_there_is_named(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from recollect.loader import outputs

    monkeypatch.setattr(outputs, "_is_installed", lambda package: package != kind)
    with pytest.raises(errors.MissingDependency, match=f"{kind} is not installed.*numpy"):
        rc.Loader(plain_view(10), batch_size=4, seed=0, output=kind)


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "jax", "jaxlib", "tensordict"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import numpy as np
import recollect as rc
from recollect import errors

schema = rc.Schema({"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32")})
with rc.create_workspace("w", schema) as ws:
    with ws.writer() as writer, writer.episode() as episode:
        for t in range(50):
            episode.append(observation=[t, 0], reward=t, terminated=t == 49)
        live = rc.Loader(ws.live(), rc.Prioritized(), batch_size=8, seed=0, rate=rc.RateLimit(8.0), min_rows=10)
        batch = next(live)
        assert isinstance(batch["observation"], np.ndarray)
        assert live.update_priorities(batch.ids, np.ones(8)).applied == 8
    for threads in (0, 2):
        with rc.Loader(ws.view(), rc.Sequence(4), batch_size=8, seed=0, transforms=[rc.NStep(2, gamma=0.9)],
                       threads=threads, rank=1, world_size=2) as loader:
            assert [b["reward"].shape for b in loader.take(3)] == [(4, 4)] * 3
            fresh = rc.Loader(ws.view(), rc.Sequence(4), batch_size=8, seed=0, transforms=[rc.NStep(2, gamma=0.9)])
            fresh.load_state_dict(loader.state_dict())
    for options in ({"output": "torch"}, {"output": "jax"}, {"output": "tensordict"}, {"device": "cuda"}):
        try:
            rc.Loader(ws.view(), batch_size=8, seed=0, **options)
        except errors.MissingDependency as error:
            assert "pip install" in str(error)
        else:
            raise AssertionError(options)
assert not {"torch", "jax", "tensordict"} & sys.modules.keys()
print("fine")
"""


def test_everything_else_works_without_torch_jax_and_tensordict() -> None:
    assert run_python(BLOCKED) == "fine\n"


# -- buffers that are used again -------------------------------------------------------------------------------------


def test_a_buffer_is_used_again_once_its_copy_is_done() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from recollect.loader.device import Pinned

    class Event:
        is_done = False

        def query(self) -> bool:
            return self.is_done

    buffers, event = Pinned(torch, pinned=False), Event()
    first = buffers.take(100)
    buffers.give(first, event)
    second = buffers.take(100)
    assert second is not first, "its bytes are still read"
    event.is_done = True
    assert buffers.take(101) is not first, "it is too small"
    assert buffers.take(80) is first


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_of_a_device_stay_what_they_were_while_buffers_are_used_again(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    from recollect.loader import loader as module
    from recollect.loader.device import DeviceOutput

    view = plain_view(60, lost=False)

    def make() -> rc.Loader:
        return rc.Loader(view, rc.Prioritized(), batch_size=8, seed=1)

    want = [next(loader) for loader in [make()] for _ in range(30)]
    output = DeviceOutput(device)
    monkeypatch.setattr(module, "choose", lambda kind, name: output)
    loader, got = make(), []
    for _ in range(30):
        batch = next(loader)
        batch["observation"]
        got.append(batch)
    for a, b in zip(want, got, strict=True):
        assert batch_bits(a) == batch_bits(_on_cpu(b))
    assert device == "cuda" or len(output._buffers._free) <= 3, "buffers were made anew"


class _on_cpu:
    """A batch whose tensors are on the CPU."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.ids, self.keys = batch.ids, batch.keys
        self.weight, self.probability = batch.weight.cpu(), batch.probability.cpu()
        self.valid = {k: v.cpu() for k, v in batch.valid.items()}
        self.lengths = {k: v.cpu() for k, v in batch.lengths.items()}

    def __getitem__(self, name: str) -> Any:
        return self._batch[name].cpu()
