"""The same experience in the files of others: Parquet with zstd, Minari's HDF5, Deep Lake."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from corpora import Episode


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def parquet(folder: Path, steps: Any, episodes: list[Episode]) -> None:
    """Every column of the buffer, ids and times among them."""
    import pyarrow.parquet as pq

    pq.write_table(steps, folder / "steps.parquet", compression="zstd")


def parquet_tuned(folder: Path, steps: Any, episodes: list[Episode]) -> None:
    """The same with what Parquet has for floats and counters, which nobody gets by default."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    encodings = {}
    for field in steps.schema:
        kind, name = field.type, field.name
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            kind, name = kind.value_type, f"{name}.list.element"
        if pa.types.is_floating(kind):
            encodings[name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
            encodings[name] = "DELTA_BINARY_PACKED"
    pq.write_table(steps, folder / "steps.parquet", compression="zstd", use_dictionary=False, column_encoding=encodings)


def minari(folder: Path, steps: Any, episodes: list[Episode]) -> None:
    """Fields and ends alone, as Minari keeps them by default but for its lossy images."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    import minari as peer
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    first = episodes[0]
    bound = {"low": 0, "high": 255} if first.observations.dtype == np.uint8 else {"low": -np.inf, "high": np.inf}
    shape: Any = first.observations.shape[1:]
    if first.actions.ndim == 1:
        action: Any = spaces.Discrete(18)
    else:
        action = spaces.Box(-1, 1, first.actions.shape[1:], np.float32)
    peer.create_dataset_from_buffers(
        "bench/storage-v0",
        [
            EpisodeBuffer(
                id=k,
                observations=list(e.observations),
                actions=list(e.actions),
                rewards=e.rewards.tolist(),
                terminations=[False] * (len(e) - 1) + [e.terminated],
                truncations=[False] * (len(e) - 1) + [e.truncated or not e.terminated],
            )
            for k, e in enumerate(episodes)
        ],
        action_space=action,
        observation_space=spaces.Box(shape=shape, dtype=first.observations.dtype.type, **bound),
        data_format="hdf5",
        jpeg_encoding=False,
    )


def deep_lake(folder: Path, steps: Any, episodes: list[Episode]) -> None:
    """Fields and ends alone; frames as PNG, its own lossless form of images."""
    import deeplake as peer

    first = episodes[0]
    wide = first.observations.ndim == 3
    dataset = peer.create(str(folder / "lake"))
    if wide:
        dataset.add_column("observation", peer.types.Image(dtype="uint8", sample_compression="png"))
    else:
        dataset.add_column("observation", peer.types.Array("float32", shape=list(first.observations.shape[1:])))
    if first.actions.ndim == 1:
        dataset.add_column("action", peer.types.Int64())
    else:
        dataset.add_column("action", peer.types.Array("float32", shape=list(first.actions.shape[1:])))
    for name, kind in (("reward", "Float32"), ("terminated", "Bool"), ("truncated", "Bool"), ("episode", "Int32")):
        dataset.add_column(name, getattr(peer.types, kind)())

    def column(of: Callable[[Episode], Any], more: Any) -> Any:
        """One value for each observation; `more` stands beside the last of an episode."""
        return np.concatenate([np.concatenate([of(e), np.asarray(more)[None]]) for e in episodes])

    observations = np.concatenate([e.observations for e in episodes])
    dataset.append(
        {
            "observation": [*observations[..., None]] if wide else observations,
            "action": column(lambda e: e.actions, np.zeros_like(first.actions[0])),
            "reward": column(lambda e: e.rewards, np.float32(0)),
            "terminated": column(lambda e: np.arange(len(e)) == (len(e) - 1 if e.terminated else -1), False),
            "truncated": column(lambda e: np.arange(len(e)) == (len(e) - 1 if e.truncated else -1), False),
            "episode": np.repeat(np.arange(len(episodes), dtype=np.int32), [len(e) + 1 for e in episodes]),
        }
    )
    dataset.commit()


TUNED = "Parquet tuned by hand"
PEERS: dict[str, Callable[[Path, Any, list[Episode]], None]] = {
    "Parquet with zstd": parquet,
    TUNED: parquet_tuned,
    "Minari's HDF5": minari,
    "Deep Lake": deep_lake,
}


def sizes(folder: Path, steps: Any, episodes: list[Episode]) -> dict[str, int | str]:
    """Bytes on disk of each peer, or why there are none."""
    logging.disable(logging.WARNING)
    out: dict[str, int | str] = {}
    for name, write in PEERS.items():
        at = folder / write.__name__
        at.mkdir(parents=True)
        try:
            write(at, steps, episodes)
        except Exception as e:  # a peer that cannot be measured is no reason to measure nothing
            out[name] = f"{type(e).__name__}: {str(e).splitlines()[0][:80] if str(e) else ''}"
        else:
            out[name] = size_of(at)
    logging.disable(logging.NOTSET)
    return out
