"""``serve``: a page and an API for pictures."""

from mlseg_jax.errors import UserError
from mlseg_jax.serving import models
from mlseg_jax.serving.limits import Limits
from mlseg_jax.serving.server import is_loopback, open_server
from mlseg_jax.serving.service import Service


def run(flags) -> None:
    if bool(flags.model) == bool(flags.workdir):
        raise UserError("serve takes either --workdir=RUN or --model=EXPORTED_FOLDER.")
    if flags.model:
        predictor, usual = models.of_export(flags.model)
    else:
        predictor, usual = models.of_run(flags.config, flags.workdir, flags.checkpoint)
    limits = Limits(
        bytes=flags.max_megabytes * 2**20,
        pixels=min(
            flags.max_megapixels * 10**6, predictor.about["views"]["max_pixels"]
        ),
    )
    examples = models.example_pictures(flags.config) if flags.workdir else []
    service = Service(predictor, usual, limits, examples)
    server = open_server(flags.host, flags.port, service, flags.public_host)
    print("compiling ...", flush=True)
    models.warm_up(predictor)
    host, port = server.server_address[:2]
    if not is_loopback(host):
        print("anybody who reaches this address can use the model", flush=True)
    name = f"[{host}]" if ":" in host else host
    print(f"http://{name}:{port}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("ended")
    finally:
        server.server_close()
