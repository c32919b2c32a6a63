"""Imported once by the server that forks the runs on a CPU: what every run needs and none should wait for.

Nothing here may start a thread, as an operator of torch would: a fork has no copy of it.
"""

import nvsubq.models
import nvsubq.training.runner  # noqa: F401
from nvsubq.data.digits import MNIST5k

MNIST5k().load()  # numpy alone; kept by a cache
