"""What evaluating costs beside predicting the same pictures.

    python benchmarks/evaluation.py --json=FILE [--config=configs/demo.py]

Random weights; the pictures of the evaluation split. *predict*: from pictures in memory
to label maps. *evaluate*: from the files (or the making of scenes) to all metrics,
without the oracle, as in the middle of a training; pictures are made or read by threads
meanwhile. Both take turns; figures are medians.
"""

import pathlib
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

measure.use_repository()

from input_pipeline.datasets.open import open_dataset  # noqa: E402
from mlseg_jax.models.build import FunctionalModel, initial_parameters  # noqa: E402
from mlseg_jax.tasks.engines import evaluation_policy, make_engine  # noqa: E402
from mlseg_jax.tasks.evaluation import evaluate  # noqa: E402
from mlseg_jax.tasks.semantic_evaluation import SemanticEvaluation  # noqa: E402

config_flags.DEFINE_config_file("config", "configs/demo.py", "Configuration.")
flags.DEFINE_string("json", None, "File to write.")
flags.DEFINE_integer("repetitions", 5, "Turns; a figure is the median over them.")


def run(config, repetitions: int) -> dict[str, object]:
    source = open_dataset(config.data, train=False)
    num_classes = source.info.num_classes
    make = jax.jit(lambda: initial_parameters(config, num_classes, 0)[0])
    model = FunctionalModel.build(config, num_classes)
    engine = make_engine(config, model, make())
    policy = evaluation_policy(config, num_classes)
    examples = [source[i] for i in range(len(source))]
    groups = [
        [example["image"] for example in group]
        for group in SemanticEvaluation(config, source.info).groups(engine, examples)
    ]

    def predict():
        for images in groups:
            for segmented in engine.segment(images, [(policy, None)])[0]:
                segmented.label_maps()

    def evaluate_all():
        evaluation = SemanticEvaluation(config, source.info)
        evaluate(evaluation, engine, source, config)

    turns = {
        "predict": lambda: measure.seconds_of(predict),
        "evaluate": lambda: measure.seconds_of(evaluate_all),
    }
    measure.alternate(turns, 1)  # Compiles.
    middle = measure.medians(measure.alternate(turns, repetitions))
    ratio = middle["evaluate"] / middle["predict"]
    seconds = {f"{name}_seconds": value for name, value in middle.items()}
    return {"pictures": len(examples), **seconds, "evaluate_over_predict": ratio}


def main(_) -> None:
    values = flags.FLAGS
    facts = measure.machine()
    measure.print_machine(facts)
    result = run(values.config, values.repetitions)
    measure.print_table([{"figure": k, "value": v} for k, v in result.items()])
    measure.write_json(values.json, {**result, "machine": facts})


if __name__ == "__main__":
    app.run(main)
