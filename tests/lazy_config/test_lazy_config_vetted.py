"""What of the packages on the default list is a target: what is listed, not all that lies there."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from config_targets import fresh_policy

from nvsubq.lazy_config import ConfigError, allow_targets, instantiate, targets

__all__ = ["fresh_policy"]


def test_of_nvsubq_only_what_is_listed_can_be_called() -> None:
    """Every function and method of every module, so that a new one is no target before someone says so."""
    import nvsubq

    open_to_configs = set()
    for module in modules_of(nvsubq):
        for name, member in list(vars(module).items()):
            methods = [f"{name}.{key}" for key in vars(member)] if isinstance(member, type) else []
            paths = [*methods, *([] if isinstance(member, type) else [name])]
            open_to_configs |= {path for part in paths if resolves(path := f"{module.__name__}.{part}")}
    own = {path for path in open_to_configs if targets.resolve(path).__module__.startswith("nvsubq.")}
    assert own
    assert {targets.resolve(path).__module__ for path in own} == {"nvsubq.nd.curves", "nvsubq.nd.orders"}


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda name: None):
        try:
            yield importlib.import_module(found.name)
        except ImportError:  # of an extra that is not installed
            continue


def resolves(path: str) -> bool:
    try:
        return not isinstance(targets.resolve(path), type)
    except targets.TargetError:
        return False


@pytest.mark.parametrize(
    "path",
    ["torch.nn.functional.gelu", "torch.nn.functional.max_pool2d", "torch.nn.init.zeros_",
     "torchmetrics.Accuracy", "torchmetrics.functional.accuracy", "torch.optim.lr_scheduler.StepLR",
     "lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.strategies.DDPStrategy",
     "nvsubq.nd.scan_order", "nvsubq.training.watch.Throughput", "nvsubq.compat.lite_mamba.Mamba"],
)  # fmt: skip
def test_what_builds_a_part_is_still_a_target(path: str) -> None:
    assert callable(targets.resolve(path))


def test_user_may_list_what_is_not_vetted() -> None:
    method = "torch.nn.Linear.extra_repr"
    node = {"_target_": method, "self": {"_target_": "torch.nn.Linear", "_args_": [1, 2]}}
    with pytest.raises(ConfigError) as caught:
        instantiate(node)
    assert str(caught.value).splitlines()[1:3] == [
        f"  {method!r} is a method: a config builds objects and calls none of their methods.",
        f"  to allow it: nvsubq.allow_targets({method!r}) in code, or {targets.VARIABLE}; never in a config.",
    ]
    allow_targets(method)
    assert instantiate(node) == "in_features=1, out_features=2, bias=True"
    hook = "torch.optim.optimizer.register_optimizer_step_pre_hook"
    with pytest.raises(targets.TargetError, match="is none of the classes and functions of its package"):
        targets.resolve(hook)
    allow_targets("torch.optim.optimizer.*")
    assert targets.resolve(hook).__name__ == "register_optimizer_step_pre_hook"


def test_module_without_a_target_is_not_imported() -> None:
    code = (
        "import sys\nfrom nvsubq.lazy_config import ConfigError, instantiate\n"
        "try: instantiate({'_target_': 'nvsubq.study.worker.main'})\n"
        "except ConfigError as error: print(str(error).splitlines()[1].strip())\n"
        "print('nvsubq.study' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "nothing in 'nvsubq.study' is a target that a config may name.",
        "False",
    ]
