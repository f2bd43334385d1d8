"""PNG files in bands are read back by others as they were."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mlseg_jax.prediction.png import write_png


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (23, 31), (300, 401)])
@pytest.mark.parametrize("step", [1, 5, 400])
def test_a_picture_in_bands(size, step):
    rng = np.random.default_rng(0)
    smooth = np.indices(size).sum(axis=0)[:, :, None] + np.arange(3) * 40
    for picture in (
        rng.integers(0, 256, (*size, 3), np.uint8),
        smooth.astype(np.uint8),
        np.full((*size, 3), 255, np.uint8),
    ):
        file = io.BytesIO()
        bands = (picture[y : y + step] for y in range(0, size[0], step))
        write_png(file, size, bands)
        data = file.getvalue()
        with Image.open(io.BytesIO(data)) as read:
            read.verify()  # the check sums
        read = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(read, picture)
        again = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(again[:, :, ::-1], picture)
    assert len(data) < 200 + picture.size / 50  # a paper that is all white
