"""Our weights for others: safetensors with our names, or a release-like state dict."""

import json
import pathlib
import pickle

import jax
import ml_collections
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained import region_exports, region_settings, segmenter
from mlseg_jax.pretrained.load import unscanned, unstack_blocks
from mlseg_jax.runs.workdir import load_config, load_info, load_parameters

STATE_DICTS = {
    # Segmenter of the authors' release.
    "mmseg": segmenter.to_release,
    # Mask2Former and MaskFormer.
    "hugging_face": region_exports.to_hugging_face,
    "detectron2": region_exports.to_detectron2,
}
"""Names of others that our weights can have."""

SETTINGS = {"hugging_face": region_settings.hugging_face_settings}
"""What is written beside the weights, as ``config.json``: by the configuration and the
names of the classes."""


def export_weights(workdir: str, output: str, to: str, checkpoint: str) -> str:
    """Writes a safetensors file; the configuration and the classes are its metadata.

    Args:
      workdir: whose weights.
      output: the file, which must not exist. For ``detectron2`` it may end with
        ``.pkl``, which that code's checkpointer reads (``MODEL.WEIGHTS``).
      to: ``safetensors`` keeps our names and layouts; the others (`STATE_DICTS`) give
        a state dict, for `load_state_dict`. Beside that of transformers lies its
        ``config.json``: ``from_pretrained`` reads a folder with both if the file is
        called ``model.safetensors``.
      checkpoint: latest, best or a step.

    Raises:
      UserError: the file exists already or cannot be written.
    """
    path = pathlib.Path(output)
    suffixes = (".safetensors", ".pkl")[: 1 + (to == "detectron2")]
    if path.suffix not in suffixes:
        raise UserError(f"--output={output} must end with {' or '.join(suffixes)}.")
    settings_path = path.with_name("config.json")
    for made in (path, settings_path)[: 1 + (to in SETTINGS)]:
        if made.exists():
            raise UserError(f"{made} exists already; choose another --output.")
    config = load_config(workdir)
    config.mesh.update(data=-1, fsdp=1)
    model, parameters, step = load_parameters(workdir, config, checkpoint)
    arrays = apart(config, model, jax.device_get(parameters))
    if to in STATE_DICTS and config.task == "multilabel":
        raise UserError(
            f"{workdir} is a classifier of labels, and --to={to} is of models that "
            f"segment; take --to=safetensors, which keeps our names."
        )
    if to in STATE_DICTS:
        arrays = STATE_DICTS[to](config, arrays)
    info = load_info(workdir)
    metadata = {
        "format": "pt" if to in STATE_DICTS else "mlseg_jax",
        "step": str(step),
        "config": config.to_json_best_effort(),
        "classes": json.dumps(info.class_names),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `ascontiguousarray`, which gives a single number a dimension.
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    if path.suffix == ".pkl":
        save_pickle(arrays, path)
    else:
        try:
            save_file(arrays, path, metadata=metadata)
        except SafetensorError as error:  # also what else would be an OSError
            raise UserError(
                f"{path} cannot be written ({error}); choose another --output."
            ) from error
    if to in SETTINGS:
        settings = SETTINGS[to](config, info.class_names)
        settings_path.write_text(json.dumps(settings, indent=2) + "\n")
    return f"{len(arrays)} arrays in {output}"


def save_pickle(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """A file of Detectron2's zoo, whose names are taken as they are (masks.md 8.4).

    Arrays are made by ``numpy.ndarray`` itself, which has had this name in every NumPy;
    what makes those of a usual pickle moved with its second version.
    """
    with path.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=4)
        pickler.dispatch_table = {
            np.ndarray: lambda x: (np.ndarray, (x.shape, x.dtype.str, x.tobytes()))
        }
        pickler.dump({"model": arrays, "__author__": "mlseg_jax"})


def apart(
    config: ml_collections.ConfigDict, model: FunctionalModel, arrays
) -> dict[str, np.ndarray]:
    """Every block's arrays by themselves, whether or not training scans them."""
    paths = FunctionalModel.build(unscanned(config), model.num_classes).shapes
    return unstack_blocks(dict(arrays), paths)
