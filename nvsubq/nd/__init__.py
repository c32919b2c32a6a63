"""N-dimensional mixers: a 1-D core walked over the cells of an image, a volume or any lattice."""

from nvsubq.nd.mixer import MambaND, NDMixer

__all__ = ["MambaND", "NDMixer"]
