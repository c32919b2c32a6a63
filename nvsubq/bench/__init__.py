"""Ops and cores timed on this machine, beside the portable path and other packages: `nvsubq bench`."""
