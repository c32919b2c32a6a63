"""NDMixer with several walks: which core walks which way, what they share, and how they become one field."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from nd_helpers import ForeignGRU, PlainCore, SeesAll, WalkingCore
from omegaconf import OmegaConf
from torch import Tensor, nn

from nvsubq import LazyConfig, NDMixer, instantiate
from nvsubq.cores import RGLRU, S5, S7, Attention, Mamba, Mamba2
from nvsubq.models import NDBackbone
from nvsubq.nd import scan_order

WIDTH = 8
CORES: dict[str, Callable[..., Any]] = {
    "mamba": partial(Mamba, d_state=4),
    "mamba2": partial(Mamba2, d_state=8, headdim=4),
    "s5": partial(S5, d_state=8),
    "s7": partial(S7, d_state=4),
    "rglru": partial(RGLRU),
    "attention": partial(Attention, causal=True),
    "plain": PlainCore,
    "walking": WalkingCore,
    "gru": lambda d_model: ForeignGRU(d_model),
}
SHAPES = [(9,), (5, 4), (3, 2, 5), (2, 3, 1, 2)]
SEVERAL = ["row_major", "snake", "morton"]
SPLIT = {"split_channels": ["random(1)", "column_major"]}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def walked(core: nn.Module, cells: Tensor, order: Any, spatial: tuple[int, ...], reverse: bool) -> Tensor:
    """`P^-1(core(P x))`, with explicit indexing."""
    walk = scan_order(order, spatial)
    walk = walk.flip(0) if reverse else walk
    back = torch.empty_like(walk)
    back[walk] = torch.arange(len(walk))
    return core(cells[:, walk])[:, back]


def by_hand(mixer: NDMixer, x: Tensor) -> Tensor:
    """The definition of every mode."""
    spatial, cells = tuple(x.shape[1:-1]), x.flatten(1, -2)
    scan = mixer.scan
    orders = scan["split_channels"] if isinstance(scan, dict) else [scan] if isinstance(scan, str) else scan
    ways = [False, True] if mixer.bidirectional else [False]
    walks = [(i, order, reverse) for i, order in enumerate(orders) for reverse in ways]
    width = x.shape[-1] // len(walks)
    outputs = []
    for n, (i, order, reverse) in enumerate(walks):
        name = "core_layer" + (f"_{i}" if i else "") + ("_rev" if reverse else "")
        core = getattr(mixer, name if mixer.share == "none" else "core_layer")
        told = cells[..., n * width : (n + 1) * width] if isinstance(scan, dict) else cells
        if mixer.share == "all+direction":
            told = told + mixer.direction[n]
        outputs.append(walked(core, told, order, spatial, reverse))
    if mixer.fuse == "concat":
        out = torch.cat(outputs, -1) @ mixer.fusion.proj.weight.T + mixer.fusion.proj.bias
    elif isinstance(scan, dict):
        out = torch.cat(outputs, -1)
    elif mixer.fuse == "gate":
        weights = (cells @ mixer.fusion.gate.weight.T + mixer.fusion.gate.bias).softmax(-1)
        out = (torch.stack(outputs, -1) * weights[..., None, :]).sum(-1)
    else:
        out = torch.stack(outputs).sum(0) / (len(outputs) if mixer.fuse == "mean" else 1)
    return out.reshape(x.shape)


def wake(mixer: NDMixer) -> NDMixer:
    """Give parameters that start at zero a value."""
    for name, parameter in mixer.named_parameters():
        if "fusion" in name or "direction" in name:
            nn.init.normal_(parameter, std=0.5)
    return mixer.double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
@pytest.mark.parametrize("scan", [SEVERAL, SPLIT], ids=["several", "split"])
def test_law_for_every_core_and_rank(scan: Any, core: Any, shape: tuple[int, ...]) -> None:
    mixer = NDMixer(core, d_model=WIDTH, scan=scan, bidirectional=scan is SPLIT).double()
    x = torch.randn(2, *shape, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_hand(mixer, x))


@pytest.mark.parametrize("share", ["none", "all", "all+direction"])
@pytest.mark.parametrize("fuse", ["sum", "mean", "concat", "gate"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("scan", ["snake", SEVERAL, SPLIT], ids=["one", "several", "split"])
@pytest.mark.parametrize("core", [CORES["mamba"], CORES["plain"]], ids=["mamba", "plain"])
def test_law_for_every_mode(core: Any, scan: Any, bidirectional: bool, fuse: str, share: str) -> None:
    if fuse == "gate" and scan is SPLIT:
        with pytest.raises(ValueError, match=r"`fuse` \(='gate'\) must be 'sum', 'mean' or 'concat' where"):
            NDMixer(core, d_model=WIDTH, scan=scan, fuse=fuse)
        return
    options = {"bidirectional": bidirectional, "fuse": fuse, "share": share}
    mixer = wake(NDMixer(core, d_model=WIDTH, scan=scan, **options))
    x = torch.randn(2, 3, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    if scan == "snake" and not bidirectional:  # one walk: nothing to fuse, nothing to share
        assert {name.split(".")[0] for name in mixer.state_dict()} == {"core_layer"}
        torch.testing.assert_close(
            mixer(x), walked(mixer.core_layer, x.flatten(1, 2), scan, (3, 5), False).view_as(x)
        )
        return
    weight, wanted = torch.randn_like(x), [x, *mixer.parameters()]
    results = mixer(x), by_hand(mixer, x)
    torch.testing.assert_close(*results)
    found = [torch.autograd.grad((y * weight).sum(), wanted) for y in results]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_gradients_are_those_of_plain_indexing(core: Any) -> None:
    for scan in (SEVERAL, SPLIT):
        mixer = NDMixer(core, d_model=WIDTH, scan=scan, bidirectional=scan is SPLIT, fuse="mean").double()
        x = torch.randn(2, 5, 3, WIDTH, dtype=torch.float64, requires_grad=True)
        weight, wanted = torch.randn_like(x), [x, *mixer.parameters()]
        found = [
            torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
            for y in (mixer(x), by_hand(mixer, x))
        ]
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want)


def test_four_shared_directions_commute_with_the_turns_of_a_square() -> None:
    """Rows and columns both ways by one core: the output turns with the field."""
    mixer = NDMixer(
        CORES["mamba"], d_model=WIDTH, scan=["row_major", "column_major"], bidirectional=True, share="all"
    ).double()
    x = torch.randn(2, 4, 4, WIDTH, dtype=torch.float64)
    for move in (lambda t: t.transpose(1, 2), lambda t: t.flip(1, 2), lambda t: t.flip(1, 2).transpose(1, 2)):
        torch.testing.assert_close(mixer(move(x)), move(mixer(x)))
    assert not torch.allclose(mixer(x.flip(1)), mixer(x).flip(1)), "rows from the bottom are another walk"
    own = NDMixer(CORES["mamba"], d_model=WIDTH, scan=mixer.scan, bidirectional=True).double()
    assert not torch.allclose(own(x.transpose(1, 2)), own(x).transpose(1, 2))


def test_our_cores_read_through_tables_and_others_are_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from nvsubq.ops.walks import Walk

    calls: list[str] = []
    for name in ("gather", "scatter"):
        plain = getattr(Walk, name)
        monkeypatch.setattr(
            Walk, name, lambda self, x, plain=plain, name=name: (calls.append(name), plain(self, x))[1]
        )
    x = torch.randn(1, 4, 3, WIDTH)
    NDMixer(PlainCore, d_model=WIDTH, scan=["snake", "morton"], bidirectional=True)(x)
    assert calls == ["gather", "scatter"] * 4
    calls.clear()
    NDMixer(WalkingCore, d_model=WIDTH, scan=["snake", "morton"], bidirectional=True)(x)
    assert not calls


class TestNames:
    def test_each_walk_has_a_core_of_its_own(self) -> None:
        mixer = NDMixer(PlainCore, d_model=WIDTH, scan=["snake", "morton"], bidirectional=True, fuse="concat")
        cores = ["core_layer", "core_layer_rev", "core_layer_1", "core_layer_1_rev"]
        names = {f"{core}.proj.{p}" for core in cores for p in ("weight", "bias")}
        assert set(mixer.state_dict()) == names | {"fusion.proj.weight", "fusion.proj.bias"}
        assert mixer.fusion.proj.weight.shape == (WIDTH, 4 * WIDTH)
        assert len({getattr(mixer, core).proj.weight.data_ptr() for core in cores}) == 4

    def test_shared(self) -> None:
        mixer = NDMixer(PlainCore, d_model=WIDTH, scan=["snake", "morton"], bidirectional=True, share="all")
        assert set(mixer.state_dict()) == {"core_layer.proj.weight", "core_layer.proj.bias"}
        with pytest.raises(AttributeError, match="core_layer_rev"):
            mixer.core_layer_rev  # noqa: B018
        told = NDMixer(PlainCore, d_model=WIDTH, bidirectional=True, share="all+direction", fuse="gate")
        assert set(told.state_dict()) == {
            *mixer.state_dict(),
            "direction",
            "fusion.gate.weight",
            "fusion.gate.bias",
        }
        assert told.direction.shape == (2, WIDTH)

    def test_shares_of_the_width(self) -> None:
        mixer = NDMixer(PlainCore, d_model=WIDTH, scan=SPLIT, bidirectional=True)
        assert mixer.d_model == WIDTH
        assert {core.d_model for core in mixer.children() if isinstance(core, PlainCore)} == {2}
        shared = NDMixer(partial(PlainCore, 4), scan=SPLIT, share="all+direction")
        assert (shared.d_model, shared.direction.shape) == (8, (2, 4))

    def test_no_weight_decay_of_directions(self) -> None:
        mixer = partial(NDMixer, PlainCore, bidirectional=True, share="all+direction")
        model = copy.deepcopy(NDBackbone(1, 1, 2, mixer=mixer, depths=(1,), dims=(8,)))
        assert "blocks.0.mixer.direction" in model.no_weight_decay()

    def test_copied_and_pickled(self, tmp_path: Any) -> None:
        mixer = wake(NDMixer(PlainCore, d_model=WIDTH, scan=SPLIT, share="all+direction", fuse="concat"))
        x = torch.randn(1, 4, 3, WIDTH, dtype=torch.float64)
        torch.save(mixer, tmp_path / "mixer.pt")
        for other in (copy.deepcopy(mixer), torch.load(tmp_path / "mixer.pt", weights_only=False)):
            assert torch.equal(other(x), mixer(x))


class TestFactories:
    def test_one_for_each_walk(self) -> None:
        mixer = NDMixer([CORES["mamba"], PlainCore], d_model=WIDTH, bidirectional=True).double()
        assert (type(mixer.core_layer), type(mixer.core_layer_rev)) == (Mamba, PlainCore)
        x = torch.randn(2, 3, 4, WIDTH, dtype=torch.float64)
        torch.testing.assert_close(mixer(x), by_hand(mixer, x))

    def test_one_that_is_not_causal_among_them(self) -> None:
        mixer = NDMixer([SeesAll, PlainCore], d_model=WIDTH, scan=["row_major", "snake"])
        x = torch.randn(2, 3, 4, WIDTH)
        torch.testing.assert_close(mixer(x), by_hand(mixer, x))

    def test_as_configs(self) -> None:
        text = """
        _target_: nvsubq.NDMixer
        d_model: 8
        scan: [row_major, column_major]
        core:
          - {_target_: nvsubq.cores.Mamba, _partial_: true, d_state: 2}
          - {_target_: nvsubq.cores.S5, _partial_: true, d_state: 8}
        """
        mixer = instantiate(OmegaConf.create(text))
        assert (type(mixer.core_layer), type(mixer.core_layer_1)) == (Mamba, S5)
        nodes = [LazyConfig(Mamba)(d_state=2), LazyConfig(S5)(d_state=8)]
        assert type(NDMixer(nodes, d_model=8, bidirectional=True).core_layer_rev) is S5

    def test_as_many_as_walks(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"`core` \(a list of 3\) must have one factory for each of 2 walks: snake, snake from its",
        ):
            NDMixer([PlainCore] * 3, d_model=WIDTH, scan="snake", bidirectional=True)

    def test_shared_is_one(self) -> None:
        with pytest.raises(
            ValueError, match=r"`core` \(a list of 2\) must be one factory where `share` \(='all'\)"
        ):
            NDMixer([PlainCore] * 2, d_model=WIDTH, bidirectional=True, share="all")


def test_a_core_that_sees_everything_is_built_once_whatever_the_mode() -> None:
    for options in (
        {"scan": SEVERAL, "bidirectional": True, "fuse": "concat"},
        {"scan": SPLIT, "fuse": "mean"},
        {"scan": SEVERAL, "share": "all+direction", "fuse": "gate"},
    ):
        mixer = NDMixer(SeesAll, d_model=WIDTH, **options)
        assert [name for name, _ in mixer.named_parameters()] == [
            "core_layer.proj.weight",
            "core_layer.proj.bias",
        ]
        assert "core is not causal: built once" in repr(mixer)
        x = torch.randn(2, 3, 4, WIDTH)
        torch.testing.assert_close(mixer(x), mixer.core_layer(x.flatten(1, 2)).reshape(x.shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("core", ["mamba", "mamba2", "s5", "rglru", "attention"])
def test_what_the_mixer_adds_has_the_dtype_of_its_core(core: str, dtype: torch.dtype) -> None:
    made = partial(CORES[core], dtype=dtype)
    x = torch.randn(2, 3, 4, WIDTH, dtype=dtype)
    for options in (
        {"fuse": "concat"},
        {"fuse": "gate"},
        {"fuse": "concat", "scan": SPLIT},
        {"share": "all+direction"},
    ):
        mixer = NDMixer(made, d_model=WIDTH, bidirectional="scan" not in options, **options)
        assert {p.dtype for p in mixer.fusion.parameters()} <= {dtype}
        assert mixer.direction is None or mixer.direction.dtype == dtype
        y = mixer(x)
        assert (y.dtype, y.shape) == (dtype, x.shape)
        y.sum().backward()
    assert NDMixer(
        partial(made, device="meta"), d_model=WIDTH, scan=SEVERAL, fuse="gate"
    ).fusion.gate.weight.is_meta


# Dynamo itself makes an instance of every `autograd.Function` that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_in_every_mode() -> None:
    torch.compiler.reset()
    x = torch.randn(1, 4, 3, WIDTH)
    for options in ({"scan": SEVERAL, "fuse": "gate"}, {"scan": SPLIT, "bidirectional": True}):
        mixer = NDMixer(CORES["mamba"], d_model=WIDTH, **options)
        compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
        wanted = list(mixer.parameters())
        results = compiled(x), mixer(x)
        torch.testing.assert_close(*results)
        found = [torch.autograd.grad(y.square().sum(), wanted) for y in results]
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("core", [CORES["mamba"], CORES["plain"]], ids=["mamba", "plain"])
@pytest.mark.parametrize("scan", ["row_major", SEVERAL, SPLIT], ids=["rows", "several", "split"])
def test_a_class_token_is_visited_in_the_middle_of_each_walk(scan: Any, core: Any) -> None:
    mixer = NDMixer(core, d_model=WIDTH, scan=scan, bidirectional=True).double()
    x = torch.randn(2, 16, WIDTH, dtype=torch.float64, requires_grad=True)
    got = mixer(x, (3, 5))

    def middle(order: Any) -> Callable[[tuple[int, ...]], Tensor]:
        cells = scan_order(order, (3, 5)).tolist()
        return lambda shape: torch.tensor([*cells[:7], 15, *cells[7:]])

    orders = scan["split_channels"] if isinstance(scan, dict) else [scan] if isinstance(scan, str) else scan
    mixer.scan = (
        {"split_channels": [middle(o) for o in orders]} if scan is SPLIT else [middle(o) for o in orders]
    )
    torch.testing.assert_close(got, by_hand(mixer, x))
    (reach,) = torch.autograd.grad(got[0, 15].sum(), x)
    assert (reach[0].abs().sum(-1) > 0).all(), "the token hears every cell, from both sides"


def test_a_class_token_and_a_core_that_sees_everything() -> None:
    mixer = NDMixer(SeesAll, d_model=WIDTH, bidirectional=True)
    x = torch.randn(2, 16, WIDTH)
    torch.testing.assert_close(mixer(x, (3, 5)), mixer.core_layer(x))


class TestErrors:
    def test_class_token(self) -> None:
        mixer = NDMixer(PlainCore, d_model=WIDTH)
        for shape in ((2, 15, WIDTH), (2, 3, 5, WIDTH)):
            with pytest.raises(ValueError, match=r"with `spatial` \(=\(3, 5\)\) it must be \[B, L \+ 1, C\]"):
                mixer(torch.zeros(shape), (3, 5))

    def test_width_that_does_not_split(self) -> None:
        with pytest.raises(
            ValueError, match=r"`d_model` \(=6\) must be divisible by the 4 walks that split it"
        ):
            NDMixer(PlainCore, d_model=6, scan=SPLIT, bidirectional=True)
        mixer = NDMixer(partial(ForeignGRU, 3), scan=SPLIT)
        assert mixer(torch.randn(1, 2, 2, 6)).shape == (1, 2, 2, 6)
        with pytest.raises(ValueError, match="`x` has 7 channels, which must be divisible by the 2 walks"):
            mixer(torch.randn(1, 2, 2, 7))

    def test_a_bound_width_that_is_no_share(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"The share of each walk in `d_model` \(=4 channels\) differs from the `d_model` \(=8\)",
        ):
            NDMixer(partial(PlainCore, 8), d_model=8, scan=SPLIT)

    def test_unknown_width(self) -> None:
        with pytest.raises(ValueError, match=r"`fuse` \(='concat'\) needs `d_model`"):
            NDMixer(partial(ForeignGRU, 8), bidirectional=True, fuse="concat")
        with pytest.raises(ValueError, match=r"`share` \(='all\+direction'\) needs `d_model`"):
            NDMixer(partial(ForeignGRU, 8), bidirectional=True, share="all+direction")
        assert (
            NDMixer(
                partial(ForeignGRU, 8), d_model=8, bidirectional=True, fuse="gate"
            ).fusion.gate.in_features
            == 8
        )
