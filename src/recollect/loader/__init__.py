"""Draw, plan addresses, one gather, transforms, device: what a training step waits for."""

from recollect.loader.batch import Batch
from recollect.loader.loader import Loader

__all__ = ["Batch", "Loader"]
