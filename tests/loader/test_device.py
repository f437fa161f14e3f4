"""Batches on another device: one arena, copied there in one piece."""

from __future__ import annotations

import numpy as np
import pytest

import recollect as rc
from recollect import errors

torch = pytest.importorskip("torch", reason="devices are torch's")

SCHEMA = rc.Schema(
    {
        "observation": {"camera": rc.Frames((2, 2), stack=3), "joints": rc.Tensor("float32", (3,))},
        "action": rc.Tensor("int64"),
        "reward": rc.Tensor("float32"),
        "logits": rc.Tensor("float64", (2,), optional=True),
    }
)


@pytest.fixture
def view() -> rc.View:
    rng = np.random.default_rng(0)
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        for _ in range(4):
            with writer.episode() as episode:
                for t in range(9):
                    episode.append(
                        observation={"camera": rng.integers(0, 255, (2, 2)).astype(np.uint8), "joints": rng.random(3)},
                        action=t,
                        reward=rng.random(),
                        logits=None if t % 2 else rng.random(2),
                        terminated=t == 8,
                    )
        return ws.view()


def _values(batch: rc.Batch[object]) -> dict[str, object]:
    flat = {name: batch[name] for name in batch if name not in ("observation", "next_observation")}
    for name in ("observation", "next_observation"):
        flat |= {f"{name}.{k}": v for k, v in batch[name].items()}
    flat |= {f"valid.{k}": v for k, v in batch.valid.items()}
    return {**flat, "weight": batch.weight, "probability": batch.probability}


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_batch_is_the_cpu_batch(
    device: str, ahead: int, view: rc.View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a GPU the same code copies from CPU to CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    from recollect.loader import loader as module
    from recollect.loader.device import DeviceOutput

    options = {"batch_size": 8, "seed": 1, "ahead": ahead}
    transforms = [rc.NStep(2, gamma=0.9)]
    here = rc.Loader(view, transforms=transforms, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "choose", lambda kind, name: DeviceOutput(device))
    there = rc.Loader(view, transforms=transforms, **options)  # type: ignore[arg-type]
    for _ in range(7):
        a, b = next(here), next(there)
        want, got = _values(a), _values(b)
        assert want.keys() == got.keys() and np.array_equal(a.ids, b.ids)
        for name, value in got.items():
            assert value.device.type == device  # type: ignore[attr-defined]
            torch.testing.assert_close(value.cpu(), want[name], rtol=0, atol=0, equal_nan=True)  # type: ignore[attr-defined]


def test_a_device_that_is_not_here_is_refused(view: rc.View) -> None:
    with pytest.raises(errors.ArgumentError, match="device"):
        rc.Loader(view, batch_size=2, seed=0, device="no such device")
    if not torch.cuda.is_available():
        with pytest.raises(errors.ArgumentError, match="CUDA"):
            rc.Loader(view, batch_size=2, seed=0, device="cuda")
