"""The program: ``python main.py COMMAND --config=... --workdir=...``.

It only hands over; the commands are in ``mlseg_jax/cli.py``, which the installed
program ``mlseg-jax`` runs as well.
"""

from mlseg_jax.cli import run

if __name__ == "__main__":
    run()
