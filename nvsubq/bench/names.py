"""What the implementations of nvsubq are called in every table."""

OURS, PORTABLE = "nvsubq", "nvsubq torch"
"""What `auto` picks here (on a GPU an op's native kernel), and the backend `torch`."""
