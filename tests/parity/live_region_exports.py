"""What ``convert --to=hugging_face`` writes, loaded and run by transformers.

    /tmp/torchenv/bin/python tests/parity/live_region_exports.py

Needs torch and transformers 5 beside the project's requirements; run by hand. Random
weights of small models become a run and then a folder as a user would make it;
``from_pretrained`` reads it, and both look at one picture of odd sides. Prints the
largest difference of the last prediction, relative to the largest value, and ends with
status 1 above 1e-4.
"""

import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "pretrained")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from limits import WHOLE_LIMIT, difference  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from configs import mask2former, maskformer  # noqa: E402
from mlseg_jax.label_selection import select_complete  # noqa: E402
from mlseg_jax.models.build import FunctionalModel  # noqa: E402
from mlseg_jax.pretrained.convert import convert  # noqa: E402
from mlseg_jax.pretrained.export import export_weights  # noqa: E402
from mlseg_jax.runs.workdir import load_config, load_parameters  # noqa: E402

CLASSES = 40
SIDES = 225, 310  # that 32 does not divide; even the coarsest map exceeds a window
MODELS = {
    # recipe, backbone, class
    "mask2former": (
        *(mask2former, "swin_demo"),
        transformers.Mask2FormerForUniversalSegmentation,
    ),
    "mask2former, ResNet": (
        *(mask2former, "resnet50"),
        transformers.Mask2FormerForUniversalSegmentation,
    ),
    "maskformer": (
        *(maskformer, "swin_demo"),
        transformers.MaskFormerForInstanceSegmentation,
    ),
    "maskformer, ResNet": (
        *(maskformer, "resnet50"),
        transformers.MaskFormerForInstanceSegmentation,
    ),
}


def make_config(recipe, backbone: str):
    config = recipe.get_config(
        f"dataset=sign_scenes,backbone={backbone},selection=complete,task=panoptic"
    )
    with config.unlocked():
        config.model.pixel_decoder.num_groups = 32
        config.data.update(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
    return config


def random_weights(config, path: pathlib.Path) -> None:
    """Trained-looking values under our own names."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, leaf in FunctionalModel.build(config, CLASSES).shapes.items():
        values = random.standard_normal(leaf.shape).astype(np.float32)
        if name.endswith("/var"):
            arrays[name] = np.abs(values) + 0.5
        elif name.endswith("scale"):
            arrays[name] = 1 + 0.1 * values
        else:
            fan_in = np.prod(leaf.shape[: max(leaf.ndim - 1, 1)])
            arrays[name] = values * (0.7 / np.sqrt(max(fan_in, 4)))
    save_file(arrays, path, metadata={"format": "mlseg_jax"})


def compare(name: str, folder: pathlib.Path) -> float:
    recipe, backbone, theirs = MODELS[name]
    config = make_config(recipe, backbone)
    random_weights(config, folder / "random.safetensors")
    workdir, out = str(folder / "run"), folder / "out"
    convert(config, str(folder / "random.safetensors"), workdir)
    export_weights(workdir, str(out / "model.safetensors"), "hugging_face", "latest")
    model, info = theirs.from_pretrained(out, output_loading_info=True)
    loading = {key: sorted(value) for key, value in info.items() if value}
    # Every stage has a norm of its own, and the library makes one more; indices of
    # biases follow from the window.
    made = ("swin.layernorm", "encoder.model.layernorm", "relative_position_index")
    missing = loading.pop("missing_keys", [])
    extra = [key for key in missing if not any(part in key for part in made)]
    assert not extra and not loading, json.dumps([extra, str(loading)])
    image = np.random.default_rng(1).uniform(-2, 2, (1, *SIDES, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(0, 3, 1, 2)
        found = model.eval()(pixel_values=pixels)
    run, parameters, _ = load_parameters(workdir, load_config(workdir))

    @jax.jit
    def predict(parameters, image):
        output = run.bind(parameters)(image, select_complete)
        return output.class_logits[:, 0], output.regions.mask_logits()

    classes, masks = predict(parameters, image)
    return max(
        difference(classes, found.class_queries_logits),
        difference(masks, found.masks_queries_logits),
    )


def main() -> int:
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    failed = 0
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(name, pathlib.Path(folder))
        failed += found > WHOLE_LIMIT
        print(f"{name}: {found:.1e}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
