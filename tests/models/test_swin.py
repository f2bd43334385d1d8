"""Which windows Swin takes of small maps, and who chooses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from shrink import use_tiny_backbone

from configs import query2label, upernet
from mlseg_jax.models.backbones.swin import Swin, SwinPair
from mlseg_jax.models.build import build_model
from mlseg_jax.models.layers.window_attention import WindowAttention
from mlseg_jax.pretrained.formats import FORMATS
from mlseg_jax.pretrained.load import with_facts
from mlseg_jax.settings import backbones

pytestmark = pytest.mark.usefixtures("quick_compiles")

WINDOW = 4


def attention(shift_small_maps, shift=2):
    return WindowAttention(
        8, 2, window_size=WINDOW, shift=shift, shift_small_maps=shift_small_maps,
        rngs=nnx.Rngs(0),
    )  # fmt: skip


def plain_attention(module, grid):
    """All cells of one window look at each other; float64, one pair at a time."""
    side = grid.shape[0]
    kernel, bias = (
        np.asarray(x[...], np.float64)
        for x in (module.query_key_value.kernel, module.query_key_value.bias)
    )
    query, key, value = np.split(grid.reshape(side**2, -1) @ kernel + bias, 3, axis=1)
    length = 2 * WINDOW - 1
    table = np.asarray(module.relative_position_bias_table[...], np.float64)
    table = table.reshape(length, length, -1)
    cells = [(y, x) for y in range(side) for x in range(side)]
    out = np.zeros_like(query)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for i, (y, x) in enumerate(cells):
            scores = [
                query[i, part] @ key[j, part] / 2
                + table[y - v + WINDOW - 1, x - u + WINDOW - 1, head]
                for j, (v, u) in enumerate(cells)
            ]
            weights = np.exp(scores - np.max(scores))
            out[i, part] = weights / weights.sum() @ value[:, part]
    out = out @ np.asarray(module.out.kernel[...], np.float64)
    return (out + np.asarray(module.out.bias[...])).reshape(grid.shape)


@pytest.mark.parametrize("side", [1, 3, 4])
def test_a_small_map_is_one_window(side):
    module = attention(shift_small_maps=False)
    table = np.random.default_rng(0).normal(size=((2 * WINDOW - 1) ** 2, 2))
    module.relative_position_bias_table[...] = jnp.asarray(table, jnp.float32)
    grid = np.random.default_rng(1).normal(size=(3, side, side, 8))
    found = jax.jit(lambda x: module(x))(jnp.asarray(grid, jnp.float32))
    for picture, out in zip(grid, found, strict=True):
        np.testing.assert_allclose(
            out, plain_attention(module, picture), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    "grid, windows", [((5, 9), (4, 2)), ((4, 9), (4, 0)), ((7, 3), (3, 0))]
)
def test_windows_of_maps(grid, windows):
    """Those of segmentation are always shifted; the others by the shorter side."""
    assert attention(shift_small_maps=True).windows(grid) == (4, 2)
    assert attention(shift_small_maps=False).windows(grid) == windows
    assert attention(shift_small_maps=False, shift=0).windows(grid)[1] == 0


@pytest.mark.parametrize("grid", [(9, 5), (4, 6), (3, 5)])
def test_multiplications_are_those_of_the_windows(grid):
    """A token's products with all of its window, padding included, two of them."""
    for shift_small_maps in (True, False):
        pair = SwinPair(8, 2, 32, WINDOW, shift_small_maps, jnp.float32, nnx.Rngs(0))
        side = pair.shifted.attention.windows(grid)[0]
        padded = np.prod([-(-length // side) * side for length in grid])
        count = pair.macs(grid)
        products = 2 * padded * side**2 * 2 * 8
        assert count.exact - count.paper == products - 2 * 2 * 2 * np.prod(grid) * 8


def test_recipes_choose():
    assert not query2label.get_config("backbone=swin_l").model.backbone.shift_small_maps
    assert upernet.get_config("backbone=swin_b").model.backbone.shift_small_maps
    assert backbones.swin("swin_t").shift_small_maps


def test_a_query2label_file_chooses():
    config = query2label.get_config("backbone=swin_l")
    with config.unlocked():
        config.model.backbone.shift_small_maps = True
    config, notes = with_facts(config, FORMATS["query2label"])
    assert not config.model.backbone.shift_small_maps
    assert len(notes) == 1 and "shift_small_maps becomes False" in notes[0]


def test_runs_from_before_the_choice_shift():
    config = query2label.get_config("dataset=sign_scenes,backbone=vit_demo")
    use_tiny_backbone(config, "swin")
    assert "shift_small_maps" not in config.model.backbone
    model = nnx.eval_shape(lambda: build_model(config, 5, nnx.Rngs(0)))
    assert model.backbone.any_canvas


def test_one_window_takes_no_canvas():
    sizes = ConfigDict(dict(embed_dim=8, depths=(2,), num_heads=(1,), window_size=3))
    model = Swin(**sizes, shift_small_maps=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no padded canvases"):
        model(jnp.zeros((1, 8, 8, 3)), jnp.full((1, 2), 4))
