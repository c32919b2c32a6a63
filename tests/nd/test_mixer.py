"""NDMixer: it is its core on the flattened field, in both directions, for any shape; and every refusal."""

import inspect
import math
from functools import partial

import pytest
import torch
from nd_helpers import ForeignGRU, PlainCore, SeesAll, WalkingCore
from torch import nn

from nvsubq import LazyConfig, MambaND, NDMixer, allow_targets, instantiate
from nvsubq.cores import RGLRU, S5, Attention, Mamba, Mamba2

WIDTH = 8
SHAPES = [(1,), (7,), (13, 1), (5, 3), (14, 20), (1, 1, 1), (3, 2, 5), (2, 3, 1, 2), (2, 1, 3, 2, 2)]
OURS = {
    "mamba": partial(Mamba, d_state=4),
    "mamba2": partial(Mamba2, d_state=8, headdim=8),
    "s5": partial(S5, d_state=8),
    "rglru": partial(RGLRU),
    "attention": partial(Attention),
}
FOREIGN = {"plain": PlainCore, "walking": WalkingCore, "gru": partial(ForeignGRU, WIDTH)}
CORES = {**OURS, **FOREIGN}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def by_hand(mixer: NDMixer, x: torch.Tensor) -> torch.Tensor:
    """The definition, with explicit flips."""
    cells = x.reshape(x.shape[0], -1, x.shape[-1])
    out = mixer.core_layer(cells)
    if hasattr(mixer, "core_layer_rev"):
        back = mixer.core_layer_rev(cells.flip(1)).flip(1)
        out = (out + back) * (0.5 if mixer.fuse == "mean" else 1.0)
    return out.reshape(x.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("core", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize(
    "kwargs", [{}, {"bidirectional": True}, {"bidirectional": True, "fuse": "mean"}], ids=str
)
def test_law_for_any_shape(core, kwargs, shape):
    mixer = NDMixer(core, d_model=WIDTH, **kwargs)
    x = torch.randn(2, *shape, WIDTH)
    torch.testing.assert_close(mixer(x), by_hand(mixer, x))


@pytest.mark.parametrize("shape", [(1,), (13,), (4, 7), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("core", OURS.values(), ids=OURS)
@pytest.mark.parametrize("fuse", ["sum", "mean"])
def test_law_for_our_cores_in_both_directions(core, fuse, shape):
    mixer = NDMixer(core, d_model=WIDTH, bidirectional=True, fuse=fuse).double()
    x = torch.randn(2, *shape, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_hand(mixer, x))


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_gradients_are_those_of_the_definition(core):
    mixer = NDMixer(core, d_model=WIDTH, bidirectional=True).double()
    parameters = list(mixer.parameters())
    x = torch.randn(2, 3, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    ours = torch.autograd.grad((mixer(x) * weight).sum(), [x, *parameters])
    expected = torch.autograd.grad((by_hand(mixer, x) * weight).sum(), [x, *parameters])
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_row_major_means_the_last_axis_is_fastest():
    mixer = NDMixer(PlainCore, d_model=2)
    mixer.core_layer.proj = nn.Identity()
    x = torch.zeros(1, 3, 4, 2)
    x[0, 1, 2] = 1.0
    touched = mixer(x)[0, ..., 0].flatten().nonzero().flatten()
    assert touched[0] == 1 * 4 + 2
    assert len(touched) == 12 - 6


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_both_directions_reach_every_cell(core):
    mixer = NDMixer(core, d_model=WIDTH, bidirectional=True).double()
    x = torch.randn(1, 3, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    middle = mixer(x)[0, 1, 2]
    reach = torch.autograd.grad(middle.sum(), x)[0].abs().sum(-1)
    assert (reach > 0).all(), "a slow path that walks one way only would leave half of the cells out"


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_one_direction_is_causal(core):
    mixer = NDMixer(core, d_model=WIDTH).double()
    x = torch.randn(1, 3, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    reach = torch.autograd.grad(mixer(x)[0, 1, 2].sum(), x)[0].abs().sum(-1).flatten()
    assert (reach[:8] > 0).all()
    assert (reach[8:] == 0).all()


@pytest.mark.parametrize("core", [*FOREIGN.values(), OURS["mamba"]], ids=[*FOREIGN, "mamba"])
def test_memory_layout_does_not_matter(core):
    mixer = NDMixer(core, d_model=WIDTH, bidirectional=True)
    first = torch.randn(2, WIDTH, 5, 6)
    x = first.movedim(1, -1)
    assert not x.is_contiguous()
    torch.testing.assert_close(mixer(x), mixer(x.contiguous()))
    torch.testing.assert_close(mixer(x[:, ::2]), mixer(x[:, ::2].contiguous()))


def test_one_mixer_takes_every_shape():
    mixer = NDMixer(PlainCore, d_model=WIDTH, bidirectional=True)
    for shape in SHAPES:
        assert mixer(torch.randn(1, *shape, WIDTH)).shape == (1, *shape, WIDTH)
    assert mixer(torch.randn(0, 4, 4, WIDTH)).shape == (0, 4, 4, WIDTH)


def test_our_cores_are_told_to_walk_back_and_others_are_flipped():
    mixer = NDMixer(WalkingCore, d_model=WIDTH, bidirectional=True)
    mixer(torch.randn(1, 4, WIDTH))
    assert mixer.core_layer_rev.walks_back == 1
    assert mixer.core_layer.walks_back == 0
    assert mixer.core_layer.orders == mixer.core_layer_rev.orders == 0, "row-major needs no order"


def test_a_core_that_swallows_keywords_is_flipped():
    class Swallows(PlainCore):
        def forward(self, x, **kwargs):
            assert not kwargs
            return super().forward(x)

    mixer = NDMixer(Swallows, d_model=WIDTH, bidirectional=True)
    x = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(mixer(x), by_hand(mixer, x))


def test_directions_have_weights_of_their_own():
    mixer = NDMixer(PlainCore, d_model=WIDTH, bidirectional=True)
    assert not torch.equal(mixer.core_layer.proj.weight, mixer.core_layer_rev.proj.weight)
    names = set(mixer.state_dict())
    assert names == {
        f"{core}.proj.{p}" for core in ("core_layer", "core_layer_rev") for p in ("weight", "bias")
    }
    one = PlainCore(WIDTH)
    with pytest.raises(ValueError, match="`core` must build a fresh module at each call"):
        NDMixer(lambda: one, bidirectional=True)


def test_without_the_second_direction_nothing_of_it_exists():
    mixer = NDMixer(PlainCore, d_model=WIDTH)
    with pytest.raises(AttributeError, match="core_layer_rev"):
        mixer.core_layer_rev  # noqa: B018
    assert set(mixer.state_dict()) == {"core_layer.proj.weight", "core_layer.proj.bias"}
    assert "bidirectional=False" in repr(mixer)


def test_a_core_that_is_not_causal_is_built_once():
    mixer = NDMixer(SeesAll, d_model=WIDTH, bidirectional=True)
    assert not hasattr(mixer, "core_layer_rev")
    assert "core is not causal: built once" in mixer.extra_repr()
    x = torch.randn(2, 3, 4, WIDTH)
    torch.testing.assert_close(mixer(x), by_hand(mixer, x))
    attention = NDMixer(partial(Attention, causal=False), d_model=WIDTH, bidirectional=True)
    assert not hasattr(attention, "core_layer_rev")
    assert hasattr(NDMixer(Attention, d_model=WIDTH, bidirectional=True), "core_layer_rev")


class TestLateArguments:
    def test_passed_on_where_the_signature_takes_them(self):
        assert NDMixer(PlainCore, d_model=WIDTH, layer_idx=3).core_layer.layer_idx == 3
        assert NDMixer(partial(ForeignGRU, WIDTH), d_model=WIDTH, layer_idx=3).d_model == WIDTH

    def test_kept_back_where_they_are_bound(self):
        mixer = NDMixer(partial(PlainCore, layer_idx=7), d_model=WIDTH, layer_idx=3)
        assert mixer.core_layer.layer_idx == 7

    def test_kwargs_take_them(self):
        assert (
            NDMixer(lambda **kwargs: PlainCore(**kwargs), d_model=WIDTH, layer_idx=3).core_layer.layer_idx
            == 3
        )

    def test_a_factory_without_arguments(self):
        assert NDMixer(lambda: PlainCore(WIDTH)).d_model == WIDTH

    @pytest.mark.parametrize(
        "core",
        [partial(PlainCore, d_model=6), partial(PlainCore, 6), lambda: PlainCore(6)],
        ids=["keyword", "positional", "built"],
    )
    def test_conflicting_width_names_both(self, core):
        with pytest.raises(ValueError, match=r"`d_model` \(=8\) differs from the `d_model` \(=6\)"):
            NDMixer(core, d_model=8)

    def test_conflicting_width_in_a_config(self):
        with pytest.raises(ValueError, match=r"`d_model` \(=8\) differs from the `d_model` \(=6\)"):
            NDMixer(LazyConfig(Mamba)(d_model=6), d_model=8)

    def test_equal_widths_agree(self):
        assert (
            NDMixer(LazyConfig(Mamba, partial=True)(d_model=8, d_state=2), d_model=8).core_layer.d_model == 8
        )
        assert NDMixer(LazyConfig(Mamba)(d_state=2), d_model=8, layer_idx=2).core_layer.layer_idx == 2
        assert NDMixer(LazyConfig(Mamba)(d_model="???", d_state=2), d_model=8).d_model == 8

    def test_whole_mixer_as_a_config(self):
        core = LazyConfig(Mamba, partial=True)(d_state=2)
        build = instantiate(LazyConfig(NDMixer, partial=True)(core=core, bidirectional=True))
        mixer = build(d_model=8, layer_idx=1)
        assert mixer.core_layer.layer_idx == mixer.core_layer_rev.layer_idx == 1


class TestErrors:
    @pytest.mark.parametrize("shape", [(WIDTH,), (4, WIDTH)], ids=str)
    def test_rank(self, shape):
        mixer = NDMixer(PlainCore, d_model=WIDTH)
        with pytest.raises(
            ValueError, match=rf"shape \({', '.join(map(str, shape))},?\); \[B, \*spatial, C\]"
        ):
            mixer(torch.zeros(shape))

    @pytest.mark.parametrize("core", [PlainCore, partial(ForeignGRU, WIDTH)], ids=["known", "given"])
    def test_channels(self, core):
        with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5\).*channels.* are 5; `d_model` is 8"):
            NDMixer(core, d_model=WIDTH)(torch.zeros(2, 3, 4, 5))

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("scan", "spiral", "row_major, column_major, .*, or a callable of the shape"),
            ("fuse", "max", "'sum', 'mean', 'concat', 'gate'"),
            ("share", "some", r"'none', 'all', 'all\+direction'"),
        ],
    )
    def test_unknown_option(self, name, value, allowed):
        with pytest.raises(ValueError, match=rf"`{name}` \(='{value}'\) must be one of {allowed}\."):
            NDMixer(PlainCore, d_model=WIDTH, **{name: value})

    def test_bidirectional_must_be_a_bool(self):
        with pytest.raises(TypeError, match=r"`bidirectional` \(='yes'\) must be True or False"):
            NDMixer(PlainCore, d_model=WIDTH, bidirectional="yes")

    def test_misspelt_keyword(self):
        with pytest.raises(TypeError, match="bidirectonal"):
            NDMixer(PlainCore, d_model=WIDTH, bidirectonal=True)

    def test_built_module(self):
        with pytest.raises(TypeError, match=r"`core` is a built PlainCore.*add `_partial_: true`"):
            NDMixer(PlainCore(WIDTH))

    @pytest.mark.parametrize("core", [3, None, torch.zeros(2)], ids=["number", "none", "tensor"])
    def test_no_factory(self, core):
        with pytest.raises(
            TypeError, match=r"`core` .* must be a class, a function, a functools.partial or a lazy config"
        ):
            NDMixer(core)

    def test_factory_of_something_else(self):
        with pytest.raises(TypeError, match=r"`core` must build a torch.nn.Module, not int"):
            NDMixer(lambda: 3)

    def test_the_cores_own_errors_reach_the_user(self):
        with pytest.raises(ValueError, match=r"`d_model` \(=-1\) must be positive"):
            NDMixer(PlainCore, d_model=-1)
        with pytest.raises(TypeError, match="d_model"):
            NDMixer(PlainCore)

    def test_core_that_returns_a_tuple(self):
        with pytest.raises(TypeError, match=r"`core` \(GRU\) must return a tensor, not tuple"):
            NDMixer(partial(nn.GRU, WIDTH, WIDTH, batch_first=True))(torch.zeros(2, 3, WIDTH))

    def test_core_that_changes_the_shape(self):
        with pytest.raises(
            ValueError,
            match=r"`core` \(Linear\) must return the shape it is given, \(2, 6, 8\), not \(2, 6, 5\)",
        ):
            NDMixer(partial(nn.Linear, WIDTH, 5))(torch.zeros(2, 2, 3, WIDTH))


def test_mamba_nd_is_the_seeds_class():
    parameters = inspect.signature(MambaND).parameters
    assert list(parameters) == ["mamba_layer_cfg", "bidirectional"]
    assert parameters["bidirectional"].default is False
    mixer = MambaND(LazyConfig(Mamba)(d_model=WIDTH, d_state=2), bidirectional=True)
    x = torch.randn(2, 3, 4, WIDTH)
    torch.testing.assert_close(mixer(x), by_hand(mixer, x))
    assert mixer.fuse == "sum"
    assert isinstance(mixer, NDMixer)


def test_survives_state_dict_and_deepcopy():
    import copy

    mixer = NDMixer(PlainCore, d_model=WIDTH, bidirectional=True)
    twin = NDMixer(PlainCore, d_model=WIDTH, bidirectional=True)
    twin.load_state_dict(mixer.state_dict())
    x = torch.randn(1, 3, 5, WIDTH)
    assert torch.equal(twin(x), mixer(x))
    assert torch.equal(copy.deepcopy(mixer)(x), mixer(x))


def test_autocast_runs():
    mixer = NDMixer(PlainCore, d_model=WIDTH, bidirectional=True, fuse="mean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mixer(torch.randn(2, 3, 4, WIDTH))
    out.float().sum().backward()
    assert math.isfinite(out.float().sum().item())


def test_foreign_node_needs_permission_only_once():
    allow_targets("nd_helpers.*")
    node = LazyConfig("nd_helpers.ForeignGRU", partial=True)(width=WIDTH)
    assert isinstance(NDMixer(node, d_model=WIDTH).core_layer, ForeignGRU)
