"""Ops and blocks timed on a CUDA device beside other packages, against its ceilings: `nvsubq bench gpu`."""
