"""recollect: the place where an agent's experience lives.

    import recollect as rc

    ws = rc.create_workspace("rl-live", rc.Schema.from_env(env))     # hot: agents append and recall
    snap = ws.snapshot(to="s3://bucket/replay", tag="round-1")       # promotion, exactly once
    view = rc.open_buffer("s3://bucket/replay").at("round-1")        # cold: versions
    loader = rc.Loader(view, rc.Uniform(), batch_size=256, seed=0)   # batches for training

Names are loaded when they are first used, so that importing the package costs little more than numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.0.1"

_HOME = {
    "Batch": "loader",
    "Branch": "buffer",
    "Buffer": "buffer",
    "BufferDeletion": "versions.delete",
    "Cut": "view",
    "Diff": "versions.diff",
    "Embedding": "schema",
    "Episode": "hot.write.writer",
    "EpisodeKey": "view",
    "EpisodeRecord": "recall.results",
    "Extent": "view",
    "FrameStack": "transforms",
    "Frames": "schema",
    "HindsightRelabel": "transforms",
    "Hits": "recall.results",
    "Json": "schema",
    "Keep": "hot.keep",
    "Linear": "samplers",
    "Loader": "loader",
    "Mixture": "samplers",
    "NStep": "transforms",
    "Normalize": "transforms",
    "Previous": "transforms",
    "Prioritized": "samplers",
    "Ragged": "schema",
    "RateLimit": "loader",
    "Receipt": "samplers",
    "Recent": "samplers",
    "Relabel": "transforms",
    "Reservoir": "samplers",
    "ReturnsToGo": "transforms",
    "Schema": "schema",
    "Sequence": "samplers",
    "Snapshot": "promote.result",
    "Statistics": "view.statistics",
    "Step": "recall.results",
    "StepId": "view",
    "Stratified": "samplers",
    "Tensor": "schema",
    "Text": "schema",
    "Uniform": "samplers",
    "Version": "buffer",
    "View": "view",
    "Window": "view",
    "Workspace": "workspace",
    "Writer": "hot.write.writer",
    "create_workspace": "opening",
    "delete_workspace": "opening",
    "join": "records.join",
    "list_workspaces": "opening",
    "open_buffer": "buffer",
    "open_workspace": "opening",
}
_MODULES = ("errors", "gym")

if TYPE_CHECKING:
    from recollect import errors as errors
    from recollect import gym as gym
    from recollect.buffer import Branch, Buffer, Version, open_buffer
    from recollect.hot.keep import Keep
    from recollect.hot.write.writer import Episode, Writer
    from recollect.loader import Batch, Loader, RateLimit
    from recollect.opening import create_workspace, delete_workspace, list_workspaces, open_workspace
    from recollect.promote.result import Snapshot
    from recollect.recall.results import EpisodeRecord, Hits, Step
    from recollect.records.join import join
    from recollect.samplers import (
        Linear,
        Mixture,
        Prioritized,
        Receipt,
        Recent,
        Reservoir,
        Sequence,
        Stratified,
        Uniform,
    )
    from recollect.schema import Embedding, Frames, Json, Ragged, Schema, Tensor, Text
    from recollect.transforms import FrameStack, HindsightRelabel, Normalize, NStep, Previous, Relabel, ReturnsToGo
    from recollect.versions.delete import BufferDeletion
    from recollect.versions.diff import Diff
    from recollect.view import Cut, EpisodeKey, Extent, StepId, View, Window
    from recollect.view.statistics import Statistics
    from recollect.workspace import Workspace

__all__ = [
    "Batch",
    "Branch",
    "Buffer",
    "BufferDeletion",
    "Cut",
    "Diff",
    "Embedding",
    "Episode",
    "EpisodeKey",
    "EpisodeRecord",
    "Extent",
    "FrameStack",
    "Frames",
    "HindsightRelabel",
    "Hits",
    "Json",
    "Keep",
    "Linear",
    "Loader",
    "Mixture",
    "NStep",
    "Normalize",
    "Previous",
    "Prioritized",
    "Ragged",
    "RateLimit",
    "Receipt",
    "Recent",
    "Relabel",
    "Reservoir",
    "ReturnsToGo",
    "Schema",
    "Sequence",
    "Snapshot",
    "Statistics",
    "Step",
    "StepId",
    "Stratified",
    "Tensor",
    "Text",
    "Uniform",
    "Version",
    "View",
    "Window",
    "Workspace",
    "Writer",
    "create_workspace",
    "delete_workspace",
    "errors",
    "gym",
    "join",
    "list_workspaces",
    "open_buffer",
    "open_workspace",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"recollect.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'recollect' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"recollect.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
