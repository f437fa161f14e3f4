"""Facts put into a condition: what is left of it for each episode is a condition on steps alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recollect.where import evaluate, tree
from recollect.where.table import Table
from recollect.where.tree import Column, Condition, Constant, Value


def residuals(condition: Condition, episodes: Table) -> list[tuple[Condition, list[int]]]:
    """For each condition on steps that is left: the episodes that it is left for, by their places in the table.

    There are as many as there are different answers of the parts that concern episodes alone, times the different
    values of facts that are compared with fields of steps.
    """
    leaves = list(dict.fromkeys(_leaves(condition)))
    answers: list[Any] = []
    mixed: list[Column] = []
    for leaf in leaves:
        if is_on_episodes(leaf):
            true, false = evaluate.masks(leaf, episodes)
            answers.append(np.where(true, 1, np.where(false, 0, -1)).tolist())
        else:
            mixed += [c for c in tree.columns(leaf) if c.scope == "episode"]
    mixed = list(dict.fromkeys(mixed))
    for column in mixed:
        values, known = episodes.column(column)
        answers.append([v if k else None for v, k in zip(values.tolist(), known.tolist(), strict=True)])
    groups: dict[tuple[Any, ...], list[int]] = {}
    for k in range(len(episodes)):
        # By its text: NaN is not equal to itself, and 1 is equal to True.
        groups.setdefault(tuple(repr(answer[k]) for answer in answers), []).append(k)
    own = [leaf for leaf in leaves if is_on_episodes(leaf)]
    out = []
    for members in groups.values():
        first = [answer[members[0]] for answer in answers]
        truths = {leaf: tree.Known({1: True, 0: False, -1: None}[a]) for leaf, a in zip(own, first, strict=False)}
        facts = dict(zip(mixed, first[len(own) :], strict=True))
        out.append((_put(condition, truths, facts), members))
    return out


def is_on_episodes(node: Condition) -> bool:
    """Whether it asks for facts, and for nothing of single steps."""
    scopes = {c.scope for c in tree.columns(node)}
    return scopes == {"episode"}


def _leaves(node: Condition) -> Sequence[tree.Leaf]:
    if isinstance(node, tree.And | tree.Or):
        return [leaf for part in node.parts for leaf in _leaves(part)]
    return _leaves(node.of) if isinstance(node, tree.Not) else [node]


def _put(node: Condition, truths: dict[Any, tree.Known], facts: dict[Column, Any]) -> Condition:
    if isinstance(node, tree.And | tree.Or):
        return type(node)(tuple(_put(part, truths, facts) for part in node.parts))
    if isinstance(node, tree.Not):
        return tree.Not(_put(node.of, truths, facts))
    if node in truths:
        return truths[node]
    mine = [c for c in tree.columns(node) if c.scope == "episode"]
    if not mine:
        return node
    if any(facts[c] is None for c in mine):
        # Null, whatever the step holds.
        return tree.Known(True if isinstance(node, tree.IsNull) else False if isinstance(node, tree.IsNan) else None)
    if isinstance(node, tree.Compare):
        return tree.Compare(node.operator, _fill(node.left, facts), _fill(node.right, facts))
    if isinstance(node, tree.Member):
        return tree.Member(_fill(node.of, facts), node.values)
    assert isinstance(node, tree.IsNull | tree.IsNan)
    return type(node)(_fill(node.of, facts))


def _fill(value: Value, facts: dict[Column, Any]) -> Value:
    if isinstance(value, Column) and value.scope == "episode":
        return Constant(facts[value], value.kind)
    if isinstance(value, tree.Arithmetic):
        return tree.Arithmetic(value.operator, _fill(value.left, facts), _fill(value.right, facts))
    if isinstance(value, tree.Absolute):
        return tree.Absolute(_fill(value.of, facts))
    if isinstance(value, tree.Length) and value.of.scope == "episode":
        return Constant(len(facts[value.of]), "int")
    return value
