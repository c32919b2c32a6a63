"""Whole cores timed on the CPU, each in a process of its own, beside other packages: `nvsubq bench cpu`."""
