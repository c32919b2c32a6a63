"""N-dimensional mixers: a 1-D core walked over the cells of an image, a volume or any lattice."""

from nvsubq.nd.mixer import MambaND, NDMixer
from nvsubq.nd.orders import scan_order

__all__ = ["MambaND", "NDMixer", "scan_order"]
