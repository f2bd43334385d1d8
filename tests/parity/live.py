"""Measures how far we are from the public PyTorch implementations: ``make parity``.

Tiny models with random weights, pictures of odd sizes, position tables that must be
resized. Weights go through the tables that ``convert`` uses. Prints a row a model: the
largest difference of a block fed with PyTorch's own input, of the outputs, and of the
gradients (of the sum of outputs times random numbers, by every weight), each relative
to the largest value there. Ends with status 1 where a limit is passed.
"""

import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from limits import BLOCK_LIMIT, WHOLE_LIMIT, difference
from live_models import CASES, Case
from ml_collections import ConfigDict

from mlseg_jax.models.build import flat_parameters
from mlseg_jax.pretrained.fit import Fitter
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.mapping import to_ours
from mlseg_jax.pretrained.read import WeightFile


def randomise(model: torch.nn.Module) -> None:
    """Trained-looking values: nothing is left at 0, at 1 or tiny."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, param in model.named_parameters():
            noise = torch.randn_like(param)
            if "norm" in name and name.endswith("weight"):
                noise = 1.0 + 0.25 * noise
            elif "table" in name or "embed" in name and "proj" not in name:
                noise = 0.5 * noise
            elif param.ndim == 1:
                noise = 0.2 * noise
            else:
                noise = noise * param[0].numel() ** -0.5
            param.copy_(noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))


class Functional:
    """Our backbone apart from its numbers, filled by the tables."""

    def __init__(self, case: Case):
        make = lambda: case.ours(**case.sizes, rngs=nnx.Rngs(0))  # noqa: E731
        self.graph, self.abstract = nnx.split(nnx.eval_shape(make))
        found = flat_parameters(self.abstract)
        self.shapes = {f"backbone/{path}": x.shape for path, x in found.items()}
        backbone = {"num_norms": 4} | case.sizes
        self.config = ConfigDict({"model": {"backbone": backbone}})

    def take(self, state: dict[str, torch.Tensor], shapes=None):
        """Their arrays as ours; what no table makes starts as identity."""
        shapes = self.shapes if shapes is None else shapes
        arrays = {name: x.detach().numpy() for name, x in state.items()}
        _, source, arrays = recognise(WeightFile("random", "", arrays))
        fitter = Fitter(self.config, 1, self.shapes)
        mapped = to_ours(
            arrays, source.rows(self.config), shapes, part="backbone/",
            dropped=source.dropped, optional=source.optional,
            may_differ=fitter.may_differ,
        )  # fmt: skip
        taken = fitter.fit(mapped.arrays)
        missing = {
            path: (np.ones if path.endswith("scale") else np.zeros)(shape, np.float32)
            for path, shape in shapes.items()
            if path not in taken
        }
        return {k: jnp.asarray(np.array(x)) for k, x in (taken | missing).items()}

    def bind(self, params):
        state = [
            (path, variable.replace(params["backbone/" + "/".join(map(str, path))]))
            for path, variable in nnx.to_flat_state(self.abstract)
        ]
        return nnx.merge(self.graph, nnx.from_flat_state(state))


def compare(case: Case) -> tuple[float, float, float]:
    model = case.theirs.float().eval()
    randomise(model)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 3, *case.size)).astype(np.float32)
    seen, hooks = {}, []
    for name, *_ in case.blocks:
        module = model.get_submodule(name)
        hooks.append(
            module.register_forward_hook(
                lambda module, args, out, name=name: seen.update({name: (args, out)})
            )
        )
    maps = case.run(model, torch.from_numpy(images))
    cotangents = [rng.standard_normal(x.shape).astype(np.float32) for x in maps]
    pairs = list(zip(maps, cotangents, strict=True))
    sum((x * torch.from_numpy(c)).sum() for x, c in pairs).backward()

    functional = Functional(case)
    params = functional.take(model.state_dict())

    def loss(params):
        features = functional.bind(params)(np.moveaxis(images, 1, -1), None, None)
        grids = [features[i].grid for i in case.pick]
        terms = zip(grids, cotangents, strict=True)
        return sum(jnp.sum(x * c) for x, c in terms), grids

    (_, grids), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    theirs = [x.detach().numpy() for x in maps]
    whole = max(difference(x, y) for x, y in zip(grids, theirs, strict=True))
    whole_grad = gradient_difference(functional, model, grads)

    backbone, block = functional.bind(params), 0.0
    for name, path, context in case.blocks:
        args, out = seen[name]
        ours = backbone
        for part in path.split("/"):
            ours = ours[int(part)] if part.isdigit() else getattr(ours, part)
        x, y = (_tokens(value) for value in (args[0], out))
        made = ours(x) if context is None else ours(x, context)
        block = max(block, difference(made, y))
    return block, whole, whole_grad


def _tokens(x) -> np.ndarray:
    x = x[0] if isinstance(x, tuple) else x
    return x.detach().numpy()


def gradient_difference(functional, model, grads) -> float:
    state = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    state |= {name: torch.zeros_like(b) for name, b in model.named_buffers()}
    theirs = functional.take(state)
    # Where the table is resized on loading, ours is of the resized one.
    given = [path for path in grads if np.any(theirs[path]) and np.any(grads[path])]
    assert len(given) > len(grads) // 2
    return max(difference(grads[path], theirs[path]) for path in given)


def main() -> int:
    packages = ("torch", "torchvision", "timm", "transformers", "jax")
    print(", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages))
    print("\n| model | block | whole | gradient |\n|---|---|---|---|")
    failed = 0
    for make in CASES:
        case = make()
        if not all(word in case.title for word in sys.argv[1:]):
            continue
        block, whole, gradient = compare(case)
        shown = f"{block:.1e}" if case.blocks else "-"
        good = block <= BLOCK_LIMIT and whole <= WHOLE_LIMIT and gradient <= WHOLE_LIMIT
        failed += not good
        mark = "" if good else " **too far**"
        print(f"| {case.title} | {shown} | {whole:.1e} | {gradient:.1e} |{mark}")
        sys.stdout.flush()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
