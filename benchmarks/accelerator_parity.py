"""Values that an accelerator must share with the processor, for `accelerator.py`.

    JAX_PLATFORMS=cpu python benchmarks/accelerator_parity.py FILE [--dry]

writes what the processor says, in float32; `compare` says how far this process's device
is from it. Inputs are NumPy's, so that both have the same bits.
"""

import pathlib
import sys
from collections.abc import Iterator, Mapping

import measure
import numpy as np

measure.use_repository()

TOKENS, WIDTHS = (1025, 1297, 4097), (64, 80)
"""Of ViTs with a class token at 512, 576 and 1,024 pixels; heads of ViT-L and ViT-H."""

TOLERANCES = {"bfloat16": 0.03, "float32": 0.01}
"""Largest differences, relative to the largest value. A kernel may multiply float32 by
fewer bits than it is asked to."""


def attention_cases(dry: bool) -> Iterator[tuple[str, int, int, bool]]:
    for tokens in (9,) if dry else TOKENS:
        for width in (8,) if dry else WIDTHS:
            for masked in (False, True):
                name = f"attention, {tokens} tokens, heads of {width}"
                yield name + ", masked" * masked, tokens, width, masked


def run_attention(tokens: int, width: int, masked: bool, dtype: str):
    """Outputs and gradients ``[4 tokens heads width]`` of two heads, float32."""
    import jax
    import jax.numpy as jnp

    from mlseg_jax.models.layers.attention import attention

    random = np.random.default_rng(tokens)
    inputs = random.standard_normal((4, 1, tokens, 2, width), np.float32)
    mask = jnp.asarray(random.random((1, tokens)) < 0.7) if masked else None

    @jax.jit
    def run(query, key, value, weights):
        def total(*x):
            out = attention(*(a.astype(dtype) for a in x), mask).astype(jnp.float32)
            return jnp.sum(out * weights), out

        grads, out = jax.grad(total, (0, 1, 2), has_aux=True)(query, key, value)
        return jnp.concatenate([out, *grads])

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(*inputs))


def kernel_name(tokens: int, width: int, masked: bool, dtype: str) -> str:
    """Which way `attention` goes on this process's device."""
    import jax

    from mlseg_jax.models.layers.flash import find_flash

    query = jax.numpy.zeros((1, tokens, 2, width), dtype)
    kernel = find_flash(jax.default_backend(), query, query, masked=masked)
    return "blocks" if kernel is None else kernel.__name__


def run_demo(dry: bool) -> dict[str, np.ndarray]:
    """The untrained model of the demo in float32: its label map, losses, gradients."""
    import jax

    from configs import demo
    from mlseg_jax.distributed.sharding import make_mesh, put_batch
    from mlseg_jax.models.build import FunctionalModel
    from mlseg_jax.tasks.engines import evaluation_policy, make_engine
    from mlseg_jax.training.state import initialise
    from mlseg_jax.training.step import make_train_step

    config = demo.get_config()
    if dry:
        config.model.backbone.update(embed_dim=16, depth=1, num_heads=2, mlp_dim=32)
        config.model.decoder.depth = 1
        config.data.crop_size = config.model.backbone.image_size = (24, 24)
        config.eval.window = config.eval.stride = (24, 24)
    config.train.batch_size = config.eval.batch_size = jax.device_count()
    num_classes = config.data.num_classes
    model, mesh = FunctionalModel.build(config, num_classes), make_mesh(config)
    side = config.data.crop_size
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (jax.device_count(), *side, 3), np.uint8)
    images[:] = images[0]
    label_map = np.repeat(random.integers(0, num_classes, (1, *side)), len(images), 0)
    with jax.default_matmul_precision("highest"):
        state = initialise(config, num_classes, mesh)
        params = jax.tree.map(jax.numpy.copy, state["params"])
        engine = make_engine(config, model, params, mesh)
        policy = evaluation_policy(config, num_classes)
        (results,) = engine.segment([images[0]], [(policy, None)])
        maps = results[0].label_maps()
        sizes = np.tile(np.int32(side), (len(images), 1))
        batch = {"image": images, "label_map": label_map.astype(np.int32)}
        batch = put_batch(mesh, batch | {"image_size": sizes})
        _, metrics = make_train_step(config, model, mesh)(state, batch)
    scalars = {k: np.asarray(v) for k, v in metrics.items() if np.ndim(v) == 0}
    return {"label map": np.asarray(maps), **scalars}


def write(path: pathlib.Path, dry: bool) -> None:
    """What the processor says, by name, in float32."""
    arrays = {
        name: run_attention(*shape, "float32") for name, *shape in attention_cases(dry)
    }
    np.savez(path, **arrays, **{f"demo, {k}": v for k, v in run_demo(dry).items()})


def compare(expected: Mapping[str, np.ndarray], dry: bool) -> Iterator[dict]:
    """Rows of relative differences, with what is allowed."""
    for name, *shape in attention_cases(dry):
        for dtype, allowed in TOLERANCES.items():
            found = run_attention(*shape, dtype)
            difference = _difference(found, expected[name])
            kernel = kernel_name(*shape, dtype)
            yield _row(f"{name}, {dtype}", kernel, difference, allowed)
    for key, value in run_demo(dry).items():
        theirs = expected[f"demo, {key}"]
        if key == "label map":  # how many pixels have another label
            difference = float(np.mean(value != theirs))
        else:
            difference = _difference(value, theirs)
        yield _row(f"demo, {key}", "", difference, 0.01)


def _row(what: str, kernel: str, difference: float, allowed: float) -> dict:
    row = {"what": what, "kernel": kernel, "difference": difference}
    return row | {"allowed": allowed, "holds": bool(difference <= allowed)}


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]), "--dry" in sys.argv[2:])
