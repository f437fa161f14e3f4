"""Batches as TensorDicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recollect.errors import ArgumentError, MissingDependency

if TYPE_CHECKING:
    from recollect.loader.batch import Batch


def to_tensordict(batch: Batch[Any]) -> Any:
    """See `Batch.to_tensordict`."""
    try:
        import torch
        from tensordict import TensorDict
    except ImportError as e:
        raise MissingDependency("tensordict is not installed", remedy="pip install tensordict") from e
    weight = batch.weight
    if not isinstance(weight, torch.Tensor):
        raise ArgumentError("a TensorDict holds torch tensors", remedy="Make the loader with output='torch'")
    size = [len(batch)] if batch.mask is None else list(batch.mask.shape)
    ids = batch.ids if batch.step_ids is None else batch.step_ids
    columns = torch.from_numpy(np.stack([ids["writer"], ids["seq"]], axis=-1))
    values = {name: value for name, value in batch.items() if not isinstance(value, list)}
    more = {"valid": dict(batch.valid), "lengths": dict(batch.lengths)}
    of_rows = {"weight": weight, "probability": batch.probability, "mask": batch.mask}
    if batch.mask is not None:
        of_rows = {n: v if n == "mask" else v[:, None].expand(*size) for n, v in of_rows.items()}
    made = {
        "ids": columns,
        **{n: v for n, v in of_rows.items() if v is not None},
        **{n: v for n, v in more.items() if v},
    }
    if shared := made.keys() & values.keys():
        raise ArgumentError(
            "a field has the name of what a TensorDict holds beside the fields", value=sorted(shared)[0]
        )
    return TensorDict({**values, **made}, batch_size=size)
