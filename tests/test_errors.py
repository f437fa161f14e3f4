"""The error tree is whole: drawn, named, and readable."""

from __future__ import annotations

import re
from typing import Any

import pytest

from recollect import errors
from recollect.errors import RecollectError


def _subclasses(of: type[RecollectError]) -> list[type[RecollectError]]:
    out = []
    for child in of.__subclasses__():
        out += [child, *_subclasses(child)]
    return out


def _load_everything() -> None:
    import importlib
    import pkgutil

    import recollect

    for module in pkgutil.walk_packages(recollect.__path__, "recollect."):
        if not module.name.startswith(("recollect.gym", "recollect.demo", "recollect.cli")):
            importlib.import_module(module.name)


def test_every_error_is_drawn_in_the_tree_and_exported() -> None:
    _load_everything()
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    classes = [c.__name__ for c in _subclasses(RecollectError)]
    assert sorted(drawn) == sorted(classes)
    assert sorted([*classes, "RecollectError"]) == sorted(errors.__all__)


def test_the_drawn_tree_is_the_class_tree() -> None:
    parents = ["RecollectError"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([\s│├└─]*)[├└]── (\w+)(?: \((\w+)\))?", line)
        if not found:
            continue
        depth = (found.end(2) - len(found.group(2)) - 4) // 4
        del parents[depth:]
        cls = getattr(errors, found.group(2))
        assert cls.__bases__[0].__name__ == parents[-1], found.group(2)
        if found.group(3):
            assert issubclass(cls, getattr(__builtins__, found.group(3), None) or _builtin(found.group(3)))
        parents.append(found.group(2))


def _builtin(name: str) -> type[BaseException]:
    import builtins

    out: type[BaseException] = getattr(builtins, name)
    return out


def test_kinds_and_exit_codes_are_stable_names() -> None:
    classes: list[type[RecollectError]] = [RecollectError, *_subclasses(RecollectError)]
    kinds = [c.kind for c in classes]
    assert len(set(kinds)) == len(kinds)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", k) for k in kinds)
    assert all(1 <= c.exit_code <= 125 for c in classes)
    assert all("kind" in vars(c) for c in classes)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "what is wrong"),
        ({"value": 3}, "what is wrong (got 3)"),
        ({"value": "a"}, "what is wrong (got 'a')"),
        ({"value": 0}, "what is wrong (got 0)"),
        ({"remedy": "Do this"}, "what is wrong. Do this"),
        ({"value": 3, "remedy": "Do this"}, "what is wrong (got 3). Do this"),
    ],
)
def test_an_error_is_one_line_of_what_value_and_remedy(options: dict[str, Any], text: str) -> None:
    classes: list[type[RecollectError]] = [RecollectError, *_subclasses(RecollectError)]
    for cls in classes:
        error = cls("what is wrong", **options)
        assert str(error) == text == error.text
        assert (error.value, error.remedy) == (options.get("value"), options.get("remedy"))


def test_a_long_value_is_shown_short_and_an_array_on_one_line() -> None:
    import numpy as np

    assert len(str(errors.FieldError("x", value="y" * 10_000))) < 200
    assert "\n" not in str(errors.FieldError("x", value=np.zeros((8, 8))))


def test_an_error_survives_a_process_boundary() -> None:
    """Workers hand errors to their parents by pickle."""
    import pickle

    error = errors.FieldError("what is wrong", value=3, remedy="Do this")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(copy) == str(error) and copy.value == 3 and copy.remedy == "Do this"
