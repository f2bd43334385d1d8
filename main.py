"""The program: ``python main.py COMMAND --config=... --workdir=...``.

It only hands over to ``mlseg_jax/cli/program.py``, which the installed program
``mlseg-jax`` runs as well.
"""

from mlseg_jax.cli.program import run

if __name__ == "__main__":
    run()
