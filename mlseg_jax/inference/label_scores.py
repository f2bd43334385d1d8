"""Label scores of whole pictures from a trained classifier (task ``multilabel``)."""

from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from input_pipeline.augmentation.views import resize_pillow
from mlseg_jax.distributed.sharding import batch_sharding, on_mesh
from mlseg_jax.models.build import FunctionalModel, Parameters
from mlseg_jax.typing import Float


class LabelScorer:
    """Runs a classifier over pictures of any size; one compilation."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model: FunctionalModel,
        parameters: Parameters,
        mesh: Mesh | None = None,
    ):
        self.mesh = mesh
        self.num_classes = model.num_classes
        self.parameters = parameters
        num_devices = 1 if mesh is None else mesh.size
        self.batch_size = -(-config.eval.batch_size // num_devices) * num_devices
        self._size = tuple(config.data.crop_size)
        self._sharding = None if mesh is None else batch_sharding(mesh)

        def score(parameters, images):
            return model.bind(parameters)(images)

        self._score = jax.jit(on_mesh(mesh, score))

    def __call__(self, images: Sequence[np.ndarray]) -> Float[np.ndarray, "N C"]:
        """Scores before the sigmoid of pictures uint8 ``[H W 3]``."""
        parts = [np.zeros((0, self.num_classes), np.float32)]
        for start in range(0, len(images), self.batch_size):
            chosen = images[start : start + self.batch_size]
            batch = np.zeros((self.batch_size, *self._size, 3), np.uint8)
            batch[: len(chosen)] = [resize_pillow(x, self._size) for x in chosen]
            if self._sharding is not None:
                batch = jax.device_put(batch, self._sharding)
            scores = self._score(self.parameters, batch)
            parts.append(np.asarray(scores, np.float32)[: len(chosen)])
        return np.concatenate(parts)
