"""What a step is: field types, roles, presets, and their forms in TOML, JSON and Arrow."""

from recollect.schema.evolution import Change
from recollect.schema.fields import Embedding, Field, Frames, Json, Ragged, Role, Tensor, Text
from recollect.schema.schema import FieldSpec, Leaf, Schema

__all__ = [
    "Change",
    "Embedding",
    "Field",
    "FieldSpec",
    "Frames",
    "Json",
    "Leaf",
    "Ragged",
    "Role",
    "Schema",
    "Tensor",
    "Text",
]
