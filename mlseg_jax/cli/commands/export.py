"""``export``: a trained model as files that run without this project."""

from mlseg_jax.cli.flags import required
from mlseg_jax.errors import UserError
from mlseg_jax.export import artifacts, parity


def run(flags) -> None:
    workdir, output = required(flags, "workdir"), required(flags, "output")
    kind = required(flags, "to")
    if kind not in artifacts.KINDS:
        raise UserError(
            f"export writes {' or '.join(artifacts.KINDS)}, not {kind}, which is what "
            f"convert writes."
        )
    description = artifacts.export_run(
        flags.config,
        workdir,
        output,
        kind,
        checkpoint=flags.checkpoint,
        size=_size(flags.size),
        batch=flags.batch,
        opset=flags.opset,
        quantize=flags.quantize,
    )
    print(parity.line(description["parity"]))
    print(output)


def _size(given: list[str]) -> tuple[int, int] | None:
    """Height and width of --size."""
    if not given:
        return None
    if len(given) != 2 or not all(part.strip().isdigit() for part in given):
        raise UserError(
            f"--size={','.join(given)} is no height and width; write --size=512,512."
        )
    height, width = map(int, given)
    if not (height and width):
        raise UserError("A side of --size is 0; write --size=512,512.")
    return height, width
