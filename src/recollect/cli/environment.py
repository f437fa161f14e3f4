"""The schema of a gymnasium environment named on the command line.

The one file outside `recollect.gym` and the demo that imports gymnasium: it makes an environment to read its spaces.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from recollect.errors import ArgumentError, MissingDependency, NotFound
from recollect.schema import Schema

_UNKNOWN = ("NameNotFound", "NamespaceNotFound", "VersionNotFound", "UnregisteredEnv", "DeprecatedEnv")


def schema_of(name: str) -> Schema:
    """The schema of `gymnasium.make(name)`.

    Raises:
        MissingDependency: gymnasium, or something that the environment needs, is not installed.
        NotFound: no environment of that id is registered.
        ArgumentError: it cannot be made.
        SchemaError: a space that has no stored form.
    """
    try:
        gymnasium: Any = importlib.import_module("gymnasium")
    except ImportError:
        raise MissingDependency("--env needs gymnasium", remedy="pip install 'recollect[gym]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            env = gymnasium.make(name, disable_env_checker=True)
        except Exception as e:
            raise _translate(name, e) from None
        try:
            return Schema.from_env(env)
        finally:
            env.close()


def _translate(name: str, error: Exception) -> Exception:
    kind, text = type(error).__name__, " ".join(str(error).split())
    if kind in _UNKNOWN:
        return NotFound(
            f"no gymnasium environment {name!r}: {text}",
            remedy="Ids are those of gymnasium.make(), such as CartPole-v1; 'module:Id-v0' imports the module first",
        )
    if kind == "DependencyNotInstalled" or isinstance(error, ImportError):
        return MissingDependency(
            f"environment {name!r} needs a package that is not installed: {text}",
            remedy="Install it, then run this again",
        )
    return ArgumentError(
        f"environment {name!r} cannot be made: {kind}: {text}",
        remedy="Try it with gymnasium.make(), or pass --schema FILE",
    )
