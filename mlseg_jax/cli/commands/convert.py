"""``convert``: weights of others come in, and with ``--to`` ours go out."""

from mlseg_jax.cli.flags import required
from mlseg_jax.errors import UserError
from mlseg_jax.export.artifacts import KINDS
from mlseg_jax.pretrained import convert, download
from mlseg_jax.pretrained.export import export_weights


def run(flags) -> None:
    if flags.list:
        print(download.table())
        return
    if flags.to in (*KINDS, "web"):
        raise UserError(f"convert writes weights; use export for --to={flags.to}.")
    if flags.to:
        workdir, output = required(flags, "workdir"), required(flags, "output")
        print(export_weights(workdir, output, flags.to, flags.checkpoint))
        return
    weights = download.weight_file(required(flags, "weights"))
    if flags.config is None:
        print(convert.suggestion(weights))
        return
    workdir = required(flags, "workdir")
    convert.print_converted(
        convert.convert(flags.config, weights, workdir, flags.classes, flags.base)
    )
