"""Schemas that come with recollect."""

from __future__ import annotations

from collections.abc import Callable

from recollect.schema.fields import Json, Ragged, Tensor, Text
from recollect.schema.schema import Schema


def llm_agent() -> Schema:
    """A language-model agent's steps; a missing token, reward or version is null, never zero."""
    return Schema(
        {
            "kind": Text(),
            "branch": Tensor("int32", (), optional=True),
            "parent_step": Text(optional=True),
            "messages": Json(),
            "tool_use_id": Text(optional=True),
            "tokens": Ragged("int32", optional=True),
            "loss_mask": Ragged("uint8", optional=True),
            "logprobs": Ragged("float32", role="log_prob", optional=True),
            "sampling": Json(optional=True),
            "policy_id": Text(optional=True),
            "policy_version_min": Tensor("int64", (), role="policy_version", optional=True),
            "policy_version_max": Tensor("int64", (), optional=True),
            "reward": Tensor("float32", (), optional=True),
            "stop_reason": Text(optional=True),
            "infra_error": Text(optional=True),
        },
        episode={
            **{
                name: Text()
                for name in (
                    "task",
                    "task_id",
                    "group_id",
                    "rollout_id",
                    "session",
                    "agent",
                    "parent_episode",
                    "repo",
                    "commit",
                    "model",
                    "tokenizer_hash",
                    "template_hash",
                    "tools_hash",
                )
            },
            "rewards": Json(),
            "tags": Json(),
            "redactions": Tensor("int32", ()),
            "trainable": Tensor("bool", ()),
        },
    )


PRESETS: dict[str, Callable[[], Schema]] = {"llm-agent": llm_agent}
