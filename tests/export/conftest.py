"""Shapes are not checked while programs are traced for any batch: jaxtyping takes
lengths for numbers.
"""

import jaxtyping
import pytest


@pytest.fixture(autouse=True, scope="module")
def without_shape_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
