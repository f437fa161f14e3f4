"""Draw, plan addresses, one gather, transforms, device: what a training step waits for."""

from recollect.loader.batch import Batch
from recollect.loader.loader import Loader
from recollect.loader.rate import RateLimit

__all__ = ["Batch", "Loader", "RateLimit"]
