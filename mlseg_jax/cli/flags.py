"""The flags of all commands, beside those of a configuration's keys."""

import os

from absl import flags
from ml_collections import config_flags

from mlseg_jax.errors import UserError

FLAGS = flags.FLAGS


class _Path(flags.ArgumentParser):
    """A place on disk. The shell leaves ``~`` alone behind ``--workdir=``."""

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


class _Paths(flags.ListParser):
    """Several, with commas between."""

    def parse(self, argument: str | list[str]) -> list[str]:
        return [os.path.expanduser(path) for path in super().parse(argument)]


def _define_path(name: str, what: str) -> None:
    flags.DEFINE(_Path(), name, None, what, serializer=flags.ArgumentSerializer())


config_flags.DEFINE_config_file(
    "config", None, "Configuration: FILE.py or FILE.py:ARGS."
)
_define_path("workdir", "Directory of a run: where it writes, and resumes.")
flags.DEFINE_float(
    "minutes",
    0.0,
    "train: wall time from the command to the scores, which steps and schedule are "
    "fitted to; 0 is no limit.",
)
flags.DEFINE(
    _Paths(),
    "images",
    [],
    "predict: pictures and directories of pictures.",
    serializer=flags.CsvListSerializer(","),
)
_define_path(
    "video", "predict: a video (mp4, webm, gif, ...), or a folder of its frames."
)
flags.DEFINE_float("frame_rate", 25.0, "predict: frames a second of such a folder.")
_define_path(
    "output",
    "predict, export_dataset, doctor, statistics: directory to write to; evaluate: the "
    "same, where the scores are not to replace those in --workdir; convert --to: file; "
    "export: folder.",
)
_define_path("weights", "convert: file of weights to take, or a name of --list.")
flags.DEFINE_bool("list", False, "convert: published weights by name.")
_define_path(
    "base",
    "convert: DINOv3's own weights, where --weights holds what is to be added to them.",
)
_define_path("classes", "convert: text file with a class name a line.")
flags.DEFINE_enum(
    "to",
    None,
    ["safetensors", "mmseg", "hugging_face", "detectron2", "stablehlo", "onnx", "web"],
    "convert: under whose names the weights of --workdir are to be written; export: "
    "stablehlo, onnx or web.",
)
flags.DEFINE_list("size", [], "export: height and width of pictures, such as 512,512.")
_define_path("model", "serve: folder that `export --to=onnx` wrote.")
flags.DEFINE_string(
    "host", "127.0.0.1", "serve: address to listen at; 0.0.0.0 is for everybody."
)
flags.DEFINE_string(
    "public_host", None, "serve: name of the server that hands requests on to this one."
)
flags.DEFINE_integer("port", 8000, "serve: port to listen at; 0 takes a free one.")
flags.DEFINE_integer("max_megabytes", 32, "serve: largest file of a picture.")
flags.DEFINE_integer("max_megapixels", 32, "serve: largest picture.")
flags.DEFINE_enum(
    "quantize", None, ["float16", "int8"], "export --to=onnx: how weights are stored."
)
_define_path(
    "runtime", "export --to=web: what `npm pack onnxruntime-web` made; asks npm."
)
flags.DEFINE_integer("opset", 17, "export --to=onnx: version of its operators.")
_define_path(
    "scores", "predict: folder for label scores of both splits of the data set."
)
flags.DEFINE_bool(
    "raw_values",
    False,
    "predict: write the raw values of the training's masks.",
)
flags.DEFINE_string(
    "checkpoint",
    "kept",
    "kept (as the run's eval.checkpoint says), latest, best (by mIoU) or a step.",
)
flags.DEFINE_string("topology", None, "plan: v5e-256, v5p-64, h100x8, cpu8, ...")
flags.DEFINE_integer(
    "batch", None, "plan: images per chip; export: pictures at a time, any if not said."
)
flags.DEFINE_float(
    "effort", -1.0, "plan: how hard the compiler tries, -1 (quick) to 0 (as in train)."
)
flags.DEFINE_bool("largest_batch", False, "plan: find the most images that fit.")
flags.DEFINE_bool("label_table", False, "plan: also a table of C against K.")
flags.DEFINE_bool(
    "json", False, "summary, plan, doctor, statistics: print one JSON object."
)
flags.DEFINE_enum(
    "study",
    None,
    ["toy", "small", "full", "selection"],
    "report: train and tabulate the paper's ablations (configs/study.py); selection: "
    "the study of configs/selection_study.py.",
)
flags.DEFINE_bool("plan", False, "report --study=selection: what is done and to come.")
flags.DEFINE_bool("read_test", False, "report --study=selection: the final scores.")
flags.DEFINE_integer("sample", 0, "doctor: examples of each split to read; 0 is all.")
flags.DEFINE_string("dataset", None, "prepare: name, perhaps with a variant after '/'.")
_define_path("manual_dir", "prepare: directory of the raw files.")
_define_path("data_dir", "prepare: directory of prepared data sets.")
flags.DEFINE_integer("num_workers", None, "prepare: processes; one a core if not said.")
flags.DEFINE_bool("allow_incomplete", False, "prepare: take part of a data set.")
flags.DEFINE_enum(
    "on_bad_example", "fail", ["fail", "skip"], "prepare: what to do with bad examples."
)

flags.DEFINE_string(
    "coordinator", None, "Several processes: HOST:PORT of process 0 (docs/scaling.md)."
)
flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
flags.DEFINE_integer("process_id", None, "Several processes: which this is, from 0.")
flags.DEFINE_integer(
    "start_seconds", 600, "Several processes: how long they wait for each other."
)
flags.DEFINE_integer(
    "heartbeat_seconds", 60, "Several processes: silence after which one is gone."
)


def required(given, name: str):
    """The value of a flag that a command cannot do without."""
    value = getattr(given, name)
    if not value:
        raise UserError(f"This command needs --{name}=...; see --help.")
    return value
