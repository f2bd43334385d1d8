"""The program: from flags to commands, and from exceptions to one sentence."""

import contextlib
import importlib
import os
import pathlib
import re
import sys

from absl import app, flags, logging

from mlseg_jax.cli.endings import end_with, fail
from mlseg_jax.cli.flags import FLAGS
from mlseg_jax.cli.overrides import last_of_each
from mlseg_jax.distributed.host_memory import keep_freed_memory
from mlseg_jax.errors import UserError, refuse_foreign_pipeline
from mlseg_jax.settings import recipes, saved
from mlseg_jax.settings.arguments import did_you_mean

INSTALLED = "mlseg-jax"
LAUNCH = INSTALLED if pathlib.Path(sys.argv[0]).stem == INSTALLED else "python main.py"
"""How this was started."""

SHARED = ("train", "evaluate")
"""Commands that several processes work on together."""
COMPILING = (*SHARED, "predict")
"""Commands whose compilations are counted."""

COMMANDS = {
    # name, which is that of its module in commands/: what it does, an example
    "train": (
        "train, or take up a run; ends with an evaluation",
        "--config=configs/demo.py --workdir=runs/demo",
    ),
    "evaluate": (
        "evaluate a trained run, perhaps with another selection",
        "--workdir=runs/demo --config.selection.eval_k=20",
    ),
    "predict": (
        "label maps, overlays and labels of pictures, or with --video of a video",
        "--workdir=runs/demo --images=a.jpg,pictures/ --output=out/",
    ),
    "convert": (
        "take weights of others, or with --to give ours (docs/weights.md)",
        "--config=configs/segmenter.py --weights=FILE --workdir=runs/converted",
    ),
    "export": (
        "the model as files that run without this project (docs/export.md)",
        "--workdir=runs/demo --to=onnx --output=exported/",
    ),
    "serve": (
        "a page to try pictures on, and an API (docs/serving.md)",
        "--workdir=runs/demo --port=8000",
    ),
    "summary": (
        "parameters and multiply-accumulates of a configuration",
        "--config=configs/segmenter.py:dataset=coco_stuff,backbone=vit_b16",
    ),
    "plan": (
        "memory, FLOPs and time on machines one does not have",
        "--config=configs/segmenter.py:dataset=coco_lvis --topology=v5e-256",
    ),
    "report": (
        "write report.html of an evaluated run",
        "--workdir=runs/demo",
    ),
    "prepare": (
        "turn the raw files of a published data set into one that is read fast",
        "--dataset=ade20k --manual_dir=raw/ade20k --data_dir=data",
    ),
    "doctor": (
        "find what is wrong with a data set before training on it",
        "--config=configs/segmenter.py:dataset=folder --config.data.path=data/signs",
    ),
    "statistics": (
        "how many classes images have, and what K covers them (Figure 2)",
        "--config=configs/demo.py --output=out/",
    ),
    "export_dataset": (
        "write a data set as a folder of images and masks",
        "--config=configs/demo.py --output=data/signs",
    ),
}


def usage() -> str:
    lines = [
        f"usage: {LAUNCH} COMMAND [--config=FILE.py[:ARGS]] [--workdir=DIR] ...",
        "",
    ]
    for name, (what, example) in COMMANDS.items():
        lines += [f"  {name:15} {what}", f"  {'':15} {LAUNCH} {name} {example}"]
    return "\n".join(
        [
            *lines,
            "",
            "Every key of a configuration is a flag: --config.train.steps=1000.",
            "Without --config, the one saved in --workdir is used.",
        ]
    )


def run() -> None:
    """Entry of ``main.py`` and of the installed program."""
    arguments = sys.argv[1:]
    if not arguments or {"--help", "-h", "-help", "help"} & set(arguments):
        print(usage())
        sys.exit(0)
    # The library also looks there for keys.
    sys.argv = last_of_each(sys.argv)
    app.run(_main, argv=sys.argv, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses; what is wrong with a flag or a key is said in a sentence."""
    command = argv[1]
    if command not in COMMANDS:
        fail(f"There is no command {command!r}{did_you_mean(command, COMMANDS)}")
    try:
        with recipes.bound():
            rest = FLAGS(_complete(argv))[2:]
    except flags.Error as error:
        fail(_last_reason(str(error)))
    except (AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        fail(_explain_config_error(error))
    if rest:
        fail(f"{command} takes flags only, not {rest[0]!r}; see {LAUNCH} --help.")
    return [argv[0], command]


def _complete(argv: list[str]) -> list[str]:
    """Finds shipped configurations from anywhere; without one, takes the saved one."""
    given = {a.split("=", 1)[0].lstrip("-"): a for a in argv if a.startswith("-")}
    result = []
    for i, argument in enumerate(argv):
        flag, has_value, value = argument.partition("=")
        previous = argv[i - 1] if i else ""
        if flag in ("--config", "-config") and has_value:
            argument = f"{flag}={_find_config(value)}"
        elif previous in ("--config", "-config"):
            argument = _find_config(argument)
        result.append(argument)
    # `convert` makes a work directory: there is no configuration in it yet.
    # Neither does a study have one.
    own = argv[1] == "convert" or "study" in given
    if "config" not in given and "workdir" in given and not own:
        _, has_value, workdir = given["workdir"].partition("=")
        if not has_value:
            workdir = "".join(argv[argv.index(given["workdir"]) + 1 :][:1])
        if not workdir:
            fail("--workdir needs a directory.")
        place = os.path.expanduser(workdir)
        result.insert(2, f"--config={saved.__file__}:{place}")
    return result


def _find_config(value: str) -> str:
    path, colon, arguments = value.partition(":")
    if not path:
        fail("--config needs a file, such as configs/demo.py.")
    try:
        # `configs/segmenter.py` means ours from everywhere.
        return f"{recipes.find(path)}{colon}{arguments}"
    except UserError as error:
        fail(str(error))


def _explain_config_error(error: Exception) -> str:
    """The last words of the library's message, which carry the reason."""
    text = str(error.args[0] if error.args else error)
    if isinstance(error, OSError):
        return f"Cannot read the configuration: {error.strerror} ({error.filename})."
    misspelt = re.search(r"Did you mean \"(.+?)\" instead of \"(.+?)\"", text)
    if misspelt:
        right, wrong = misspelt.groups()
        return f"The configuration has no key {wrong!r}; did you mean {right!r}?"
    name = re.fullmatch(r"""["']*([\w.]+)["']*""", text)
    if name:
        return f"The configuration has no key {name[1]!r}."
    return _last_reason(text)


def _last_reason(text: str) -> str:
    """What stands after the exception's name in the last line of a traceback."""
    last = text.strip().splitlines()[-1]
    last = re.sub(r"^[\w.]*(Error|Exception): ", "", last)
    for theirs, ours in _OF_OTHERS:
        last = re.sub(theirs, ours, last)
    return last


_OF_OTHERS = (
    (r"invalid literal for int\(\) with base 10: ('.*')$", r"\1 is no whole number."),
    (r"could not convert string to float: ('.*')$", r"\1 is no number."),
    (
        r"\('Non-boolean argument to boolean flag', (.*)\)$",
        r"\1 is neither true nor false.",
    ),
    (r"Failed to parse .* as a ConfigDict: .*", "that is a section; set keys of it."),
    (
        r"Attribute <class '\w+'>\..* Attempting to lookup: (.*)",
        r"The configuration has no key '\1': what has a value has no keys.",
    ),
    (
        r"(tuple|string) indices must be integers.*",
        "What has a value has no keys; leave out what stands behind its name.",
    ),
)
"""What Python and the library say of values and keys, and what a user reads."""


def _main(argv: list[str]) -> None:
    from mlseg_jax.planning.chatter import quiet

    command = argv[1]
    try:
        refuse_foreign_pipeline()
    except UserError as error:
        fail(str(error))
    if command == "train":
        keep_freed_memory()
    with quiet() if command == "plan" else contextlib.nullcontext():
        from mlseg_jax.cli.compilations import keep_compilations
        from mlseg_jax.distributed import processes
        from mlseg_jax.runs.progress import compilations_logged, log_to_stderr

        # What other commands need is not waited for.
        module = importlib.import_module(f"mlseg_jax.cli.commands.{command}")

    # Libraries raise what they log; Orbax logs a full disk in a hundred lines.
    logging.set_verbosity(logging.FATAL)
    try:
        if FLAGS.config is not None:
            from mlseg_jax.models.build import check_config
            from mlseg_jax.settings.resolve import expand_home

            check_config(FLAGS.config)
            expand_home(FLAGS.config)
        if command in SHARED:
            processes.connect(
                FLAGS.coordinator,
                FLAGS.num_processes,
                FLAGS.process_id,
                start_seconds=FLAGS.start_seconds,
                heartbeat_seconds=FLAGS.heartbeat_seconds,
            )
        keep_compilations(writes=processes.own_index() == 0)
        if command != "plan":  # which sets JAX up for devices that are not there
            log_to_stderr()
        with (
            compilations_logged() if command in COMPILING else contextlib.nullcontext()
        ):
            module.run(FLAGS)
        processes.leave()
    except Exception as error:
        end_with(error)
        raise
    except KeyboardInterrupt:
        again = "the same command takes the run up at its last checkpoint"
        if command != "train":
            again = "run the same command again"
        fail(f"Interrupted; {again}.")
