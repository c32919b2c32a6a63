"""What the implementations of nvsubq are called in every table."""

OURS, PORTABLE, TRITON = "nvsubq", "nvsubq torch", "nvsubq triton"
"""What `auto` picks here (on a GPU an op's native kernel), and the backends `torch` and `triton`."""
