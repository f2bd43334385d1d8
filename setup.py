"""Which packages are installed; everything else stands in pyproject.toml.

The recipes of ``configs/`` go into the library's own package, as data that
``mlseg_jax/settings/recipes.py`` finds by path: an installed package named ``configs``
would stand in the way of everybody's own.
"""

from setuptools import find_packages, setup

RECIPES = "mlseg_jax.recipes"

setup(
    packages=[*find_packages(include=["mlseg_jax*", "input_pipeline*"]), RECIPES],
    package_dir={RECIPES: "configs"},
)
