"""The two sides of `against_pytorch.py`; a worker process is one of them.

    python benchmarks/pytorch_sides.py --worker=ours --task=predict --labels=171 ...

It reads a word a line (``run``, ``matmul``, ``peak``), does it, and answers with a JSON
value a line. Which interpreter runs it decides which libraries there are.
"""

import argparse
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

CASES = {
    171: dict(dataset="coco_stuff", k=50, downsample=8),
    1284: dict(dataset="coco_lvis", k=100, downsample=None),
}
TASKS = ("predict", "train")


def make_picture(num_classes: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A random picture, and a label map of 64 blocks of 12 of the classes."""
    random = np.random.default_rng(0)
    present = random.choice(num_classes, 12, replace=False)
    blocks = random.choice(present, (8, 8)).astype(np.int32)
    label_map = np.kron(blocks, np.ones((side // 8, side // 8), np.int32))
    return random.integers(0, 256, (side, side, 3), np.uint8), label_map


def our_config(num_classes: int, args):
    """The shipped configuration of the data set; ``--side`` shrinks it for a trial."""
    from configs import segmenter

    dataset = CASES[num_classes]["dataset"]
    config = segmenter.get_config(f"dataset={dataset},backbone={args.backbone}")
    side = (args.side, args.side)
    config.data.crop_size = config.model.backbone.image_size = side
    config.eval.window = config.eval.stride = side
    config.data.base_size = (4 * args.side, args.side)
    return config


def ours(num_classes: int, args):
    """What one repetition of ours does, ready to run."""
    import jax

    from mlseg_jax.distributed.host_memory import keep_freed_memory
    from mlseg_jax.distributed.sharding import make_mesh, put_batch
    from mlseg_jax.models.build import FunctionalModel, initial_parameters
    from mlseg_jax.tasks.engines import evaluation_policy, make_engine
    from mlseg_jax.training.state import initialise
    from mlseg_jax.training.step import make_train_step

    if args.task == "train":
        keep_freed_memory()  # as the command does
    config = our_config(num_classes, args)
    mesh = make_mesh(config)
    model = FunctionalModel.build(config, num_classes)
    image, label_map = make_picture(num_classes, args.side)
    if args.task == "predict":
        # Without the momentum of an optimiser, which is no part of prediction.
        make = jax.jit(lambda: initial_parameters(config, num_classes, 0))
        engine = make_engine(config, model, make()[0])
        policy = evaluation_policy(config, num_classes)

        def predict():
            (results,) = engine.segment([image], [(policy, None)])
            return results[0].label_maps()

        return predict
    step = make_train_step(config, model, mesh)
    batch = put_batch(mesh, {"image": image[None], "label_map": label_map[None]})
    held = [initialise(config, num_classes, mesh)]

    def train():
        held[0], _ = step(held[0], batch)
        jax.block_until_ready(held[0])

    return train


def theirs(num_classes: int, args):
    """What one repetition in PyTorch does, ready to run."""
    import pytorch_reference as ref
    import torch

    case = CASES[num_classes]
    if args.backbone == "vit_b16":
        size = "B"
    else:  # A trial on a small network: width, depth, heads of vit_ti16.
        size, ref.VIT["Ti"] = "Ti", dict(embed_dim=192, depth=12, num_heads=3)
        ref.VIT["Ti"] |= dict(patch_size=16)
    ref.VIT[size]["image_size"] = args.side
    torch.manual_seed(0)
    model = ref.build(size, "mlseg", num_classes, case["k"], case["downsample"])
    image, label_map = make_picture(num_classes, args.side)
    mean = torch.tensor((123.675, 116.28, 103.53))[:, None, None]
    std = torch.tensor((58.395, 57.12, 57.375))[:, None, None]

    def pixels():
        return ((torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std)[None]

    if args.task == "predict":
        model.eval()

        @torch.no_grad()
        def predict():
            if args.one_resize:
                logits = ref.input_logits(model, pixels())
                return logits.softmax(dim=1).argmax(dim=1).numpy()
            window = args.side
            return ref.predict_sliding(model, pixels(), window, window)[0].numpy()

        return predict
    model.train()
    labels = torch.from_numpy(label_map)[None].long()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    asymmetric = case["dataset"] == "coco_lvis"
    label_loss = ref.asymmetric_loss if asymmetric else ref.bce
    weight = 300.0 if asymmetric else 10.0

    def train():
        optimizer.zero_grad()
        scores, indices, logits = model(pixels())
        ranks = ref.remap_labels(labels, indices)
        loss = ref.pixel_cross_entropy(logits, ranks)
        presence = ref.presence(labels, num_classes)
        (loss + weight * label_loss(scores, presence)).backward()
        optimizer.step()

    return train


def torch_matmul():
    import torch

    a, b = torch.randn(2, measure.MATRIX_SIDE, measure.MATRIX_SIDE)
    return lambda: measure.seconds_of(lambda: a @ b)


def work(args) -> None:
    """Answers until its input ends; compiles and warms up first."""
    measure.use_repository()
    run = (ours if args.worker == "ours" else theirs)(args.labels, args)
    run()
    run()
    matmul = None

    def multiply():
        nonlocal matmul
        make = measure.jax_matmul if args.worker == "ours" else torch_matmul
        matmul = matmul or make()
        return matmul()

    answers = {
        "run": lambda: measure.seconds_of(run),
        "matmul": multiply,
        "peak": measure.peak_rss_bytes,
    }
    measure.answer(answers)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", choices=["ours", "theirs"], required=True)
    parser.add_argument("--task", choices=["predict", "train"], required=True)
    parser.add_argument("--labels", type=int, choices=list(CASES), required=True)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument(
        "--backbone", choices=["vit_b16", "vit_ti16"], default="vit_b16"
    )
    parser.add_argument("--one-resize", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    work(parse_arguments())
