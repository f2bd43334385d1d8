"""What pyproject.toml cannot say: an installed package carries the recipes as data.

They go to ``mlseg_jax/recipes``, where ``mlseg_jax/settings/recipes.py`` finds them by
path: a package installed as ``configs`` would be in the way of everybody's own. An
editable installation has them in the checkout.
"""

import pathlib

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = pathlib.Path(self.build_lib, "mlseg_jax", "recipes")
        folder.mkdir(exist_ok=True)
        for path in sorted(pathlib.Path("configs").glob("*.py")):
            self.copy_file(str(path), str(folder / path.name))


setup(cmdclass={"build_py": BuildWithRecipes})
