"""Which backend serves a call."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator

import pytest
import torch

from nvsubq import ops
from nvsubq.ops import backends, causal_conv1d, dispatch, use_backend

CPU = torch.device("cpu")
NAMES = ["native", "triton", "torch", "reference", "mamba_ssm"]
NATIVE = next(backend for backend in backends() if backend.name == "native").active


def test_backends_are_listed_with_reasons() -> None:
    listed = {backend.name: backend for backend in backends()}
    assert list(listed) == NAMES
    assert listed["torch"].active
    assert listed["reference"].active
    assert listed["torch"].ops == listed["reference"].ops == dispatch.OPS
    if NATIVE:
        assert listed["native"].ops == dispatch.OPS
    if not torch.cuda.is_available():
        assert not listed["triton"].active
        assert listed["triton"].ops == ()
        assert "CUDA" in listed["triton"].reason
        assert "ROCm" in listed["triton"].reason


FAST = "native" if NATIVE else "portable"


@pytest.mark.parametrize("op", dispatch.OPS)
def test_the_default_is_native_where_it_is_active(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVSUBQ_BACKEND", raising=False)
    for name in (None, "auto"):
        assert dispatch.resolve(op, name, CPU).__name__ == f"nvsubq.ops.{FAST}"


def test_a_backend_may_decline_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import nvsubq.ops.reference as reference

    def declines(op: str, arguments: dict) -> str | None:
        return f"{op} of {arguments['x']} is too much" if arguments["x"] > 1 else None

    monkeypatch.setattr(reference, "declines", declines, raising=False)
    assert dispatch.resolve("ssd_scan", "reference", CPU, {"x": 1}) is reference
    message = (
        r"`backend` \(='reference'\) does not serve this call of `ssd_scan`: ssd_scan of 2 is too much\."
    )
    with pytest.raises(RuntimeError, match=message):
        dispatch.resolve("ssd_scan", "reference", CPU, {"x": 2})
    monkeypatch.setattr(dispatch, "_AUTO", ("reference", "torch"))
    assert dispatch.resolve("ssd_scan", "auto", CPU, {"x": 1}) is reference
    assert dispatch.resolve("ssd_scan", "auto", CPU, {"x": 2}).__name__ == "nvsubq.ops.portable"


def test_who_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(backend: str | None = None) -> str:
        return dispatch.resolve("linear_scan", backend, CPU).__name__.rpartition(".")[2]

    monkeypatch.setenv("NVSUBQ_BACKEND", "reference")
    assert name() == "reference"
    assert name("torch") == "portable"
    with use_backend("torch"):
        assert name() == "portable"
        with use_backend("reference"):
            assert name() == "reference"
            assert name("auto") == FAST
        assert name() == "portable"
        with use_backend("auto"):
            assert name() == FAST
    assert name() == "reference"


def test_use_backend_ends_with_an_error_and_stays_in_its_thread() -> None:
    seen = []

    def fail() -> None:
        with use_backend("reference"):
            thread = threading.Thread(target=lambda: seen.append(dispatch._forced.get()))
            thread.start()
            thread.join()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [None]
    assert dispatch._forced.get() is None


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = "must be one of auto, native, triton, torch, reference, mamba_ssm"
    x, weight = torch.ones(1, 2, 1), torch.ones(1, 2)
    with pytest.raises(ValueError, match=rf"`backend` \(='cuda'\) {allowed}\."):
        causal_conv1d(x, weight, backend="cuda")
    with pytest.raises(ValueError, match=rf"`name` \(='cuda'\) {allowed}\."), use_backend("cuda"):
        pass
    monkeypatch.setenv("NVSUBQ_BACKEND", "Torch")
    with pytest.raises(ValueError, match=rf"`NVSUBQ_BACKEND` \(='Torch'\) {allowed}\."):
        causal_conv1d(x, weight)


@pytest.fixture
def without_triton() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvsubq.ops.triton.inactive", lambda: "no device is there")
        dispatch.forget()
        yield
    dispatch.forget()


def test_a_named_backend_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, without_triton: None
) -> None:
    name = "triton"
    x, weight = torch.ones(1, 2, 1), torch.ones(1, 2)
    reason = rf"\(='{name}'\) is not active: no device is there\."
    with pytest.raises(RuntimeError, match="`backend` " + reason):
        causal_conv1d(x, weight, backend=name)
    with pytest.raises(RuntimeError, match="`name` " + reason), use_backend(name):
        pass
    monkeypatch.setenv("NVSUBQ_BACKEND", name)
    with pytest.raises(RuntimeError, match="`NVSUBQ_BACKEND` " + reason):
        causal_conv1d(x, weight)


def test_a_backend_without_the_op_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import nvsubq.ops.reference as reference

    monkeypatch.delattr(reference, "ssd_scan")
    with pytest.raises(
        RuntimeError, match=r"`backend` \(='reference'\) does not serve `ssd_scan`; it has sel"
    ):
        dispatch.resolve("ssd_scan", "reference", CPU)


def test_auto_without_any_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_MODULES", dict.fromkeys(NAMES))
    dispatch.forget()
    try:
        with pytest.raises(
            RuntimeError, match=r"no active backend serves `ssd_scan` on cpu: native: not part of"
        ):
            dispatch.resolve("ssd_scan", "auto", CPU)
    finally:
        monkeypatch.undo()
        dispatch.forget()


@pytest.mark.parametrize("name", ["reference", "portable"])
@pytest.mark.parametrize("op", dispatch.OPS)
def test_a_backend_has_the_public_signature(op: str, name: str) -> None:
    public = inspect.signature(getattr(ops, op)).parameters
    module = dispatch.resolve(op, {"portable": "torch"}.get(name, name), CPU)
    served = inspect.signature(getattr(module, op)).parameters
    assert [p for p in public if p != "backend"] == list(served)
    for parameter in served.values():
        assert parameter.kind == public[parameter.name].kind, parameter
        assert parameter.default == public[parameter.name].default, parameter
