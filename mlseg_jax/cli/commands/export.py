"""``export``: a trained model as files that run without this project."""

import functools

from mlseg_jax.cli.flags import required
from mlseg_jax.errors import UserError
from mlseg_jax.export import artifacts, parity
from mlseg_jax.serving import web


def run(flags) -> None:
    workdir, output = required(flags, "workdir"), required(flags, "output")
    kind = required(flags, "to")
    if kind not in (*artifacts.KINDS, "web"):
        raise UserError(
            f"export writes {', '.join(artifacts.KINDS)} or web, not {kind}, which is "
            f"what convert writes."
        )
    options = {
        "checkpoint": flags.checkpoint,
        "sizes": _sizes(flags.size),
        "opset": flags.opset,
        "quantize": flags.quantize,
    }
    if kind == "web" and flags.batch is not None:
        raise UserError("The page takes any number of windows; leave --batch out.")
    if kind != "web" and flags.runtime is not None:
        raise UserError(f"--runtime goes with --to=web, not with --to={kind}.")
    if kind == "web":
        write = functools.partial(web.export_page, runtime=flags.runtime)
    else:
        write = functools.partial(artifacts.export_run, kind=kind, batch=flags.batch)
    description = write(flags.config, workdir, output, **options)
    print(parity.line(description["parity"]))
    print(output)


def _sizes(given: list[str]) -> list[tuple[int, int]]:
    """Heights and widths of --size, one after the other."""
    if len(given) % 2 or not all(part.strip().isdigit() for part in given):
        raise UserError(
            f"--size={','.join(given)} is no height and width; write --size=512,512, "
            f"or --size=512,512,512,768 for two sizes."
        )
    numbers = [int(part) for part in given]
    if 0 in numbers:
        raise UserError("A side of --size is 0; write --size=512,512.")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
