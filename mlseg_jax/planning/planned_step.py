"""One program of a plan: compiled ahead of time, and accounted.

Memory is the compiler's own accounting. The time is a roofline: no program can be
faster than its slowest resource at full rate.
"""

import dataclasses
import math
import re
import time

import jax
import numpy as np

from mlseg_jax.distributed.sharding import batch_sharding, within
from mlseg_jax.label_selection import Selection, SelectionPolicy
from mlseg_jax.models.flops import count_macs
from mlseg_jax.planning.chatter import quiet
from mlseg_jax.planning.compiled import Program, read_program
from mlseg_jax.planning.topologies import Topology
from mlseg_jax.runs.weights import evaluation_parameters
from mlseg_jax.tasks.engines import evaluation_policy
from mlseg_jax.training.state import abstract_state
from mlseg_jax.training.step import example_shapes, make_train_step

EFFORT = -1.0
"""How hard the compiler tries to make the program fast, -1 to 1. At -1 that of TPUs
takes a fraction of the time; the scratch space is another (``docs/planning.md``)."""

_LITTLE_EFFORT = 9
"""XLA's number for its optimisation level O0, which any effort below 0 means to a JAX
that has levels in place of the effort (0.12)."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip. ``activations`` is all scratch space beside the gradients."""

    parameters: int = 0
    optimizer: int = 0
    averages: int = 0
    batch: int = 0
    gradients: int = 0
    activations: int = 0
    code: int = 0
    total: int = 0
    usable: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """One compiled program: training or prediction.

    Attributes:
      memory: of one chip; without scratch where the compiler refused.
      fits: whether the total is within the usable memory.
      flops_per_chip: floating-point operations of the model, without repeated ones.
      executed_flops_per_chip: with those that rematerialisation does again.
      program: bytes moved and collectives, where it was compiled.
      seconds: least time by resource; ``step`` is the largest.
      largest_buffers: what takes most room, where the compiler refused.
      compile_seconds: on this machine.
    """

    memory: Memory
    fits: bool
    flops_per_chip: float
    executed_flops_per_chip: float
    program: Program | None
    seconds: dict[str, float]
    largest_buffers: tuple[str, ...]
    compile_seconds: float


class StepCompiler:
    """The programs of one configuration on one mesh, with one batch size."""

    def __init__(self, config, topology, mesh, model, batch_per_chip, effort):
        self.config, self.topology, self.mesh = config, topology, mesh
        self.model, self.batch_per_chip, self.effort = model, batch_per_chip, effort
        self.state = abstract_state(config, model.num_classes, mesh)
        macs = sum(part.exact for part in count_macs(config, model).values())
        self.forward_flops = 2.0 * macs * batch_per_chip

    def _batch(self, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        size = self.batch_per_chip * self.topology.num_chips
        sharding = batch_sharding(self.mesh)
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

    def train(self) -> Step:
        step = make_train_step(self.config, self.model, self.mesh)
        shapes = example_shapes(self.config, self.model.num_classes)
        batch = {name: self._batch(*each) for name, each in shapes.items()}
        sizes = Memory(
            parameters=bytes_per_chip(self.state["params"]),
            optimizer=bytes_per_chip((self.state["opt_state"], self.state["step"])),
            averages=bytes_per_chip(self.state["ema"]),
            gradients=bytes_per_chip(self.state["params"]),
            batch=bytes_per_chip(batch),
        )
        # A backward pass is two forward ones; full rematerialisation adds a third.
        again = self.config.model.backbone.remat == "full"
        flops = 3 * self.forward_flops
        executed = flops + self.forward_flops * again
        return self._step(step, (self.state, batch), sizes, flops, executed)

    def predict(self) -> Step:
        """What `inference.engine.Engine` runs on a batch of windows, or a classifier
        on a batch of pictures.
        """
        config, model = self.config, self.model
        windows = self._batch((*self._window(), 3), np.uint8)
        if config.task == "multilabel":

            @jax.jit
            def score(parameters, windows):
                with within(self.mesh):
                    return model.bind(parameters)(windows)

            return self._predict(score, windows)
        policy = evaluation_policy(config, model.num_classes)
        given = None
        if policy.name in ("oracle", "given"):
            policy = SelectionPolicy("given", policy.k)
            rows = self._batch((min(policy.k, model.num_classes),), np.int32)
            given = Selection(rows, None, model.num_classes)

        @jax.jit
        def predict(parameters, windows, given):
            with within(self.mesh):
                bound = model.bind(parameters)
                labels = bound.encode(windows)
                selection = policy.select(given=given)(labels.scores)
                output = bound.classify(labels, selection)
            result = output if model.num_queries else output.logits
            return labels.scores, selection, result

        return self._predict(predict, windows, given)

    def _predict(self, function, windows, *more) -> Step:
        (parameters,) = evaluation_parameters(self.state).values()
        sizes = Memory(
            parameters=bytes_per_chip(parameters), batch=bytes_per_chip(windows)
        )
        flops = self.forward_flops
        return self._step(function, (parameters, windows, *more), sizes, flops, flops)

    def _window(self) -> tuple[int, ...]:
        """Whole pictures come in any size; the crop of training stands for them, and
        its clip for videos.
        """
        data, whole = self.config.data, self.config.eval.mode == "whole"
        frames = data.get("num_frames", 0)
        clip = (frames,) if frames else ()
        return (*clip, *(data.crop_size if whole else self.config.eval.window))

    def _step(self, function, arguments, sizes: Memory, flops, executed) -> Step:
        platform = self.topology.chip.platform
        usable = self.topology.usable_memory
        start = time.monotonic()
        try:
            with quiet():
                lowered = function.trace(*arguments).lower(
                    lowering_platforms=(platform,)
                )
                compiled = lowered.compile(self._options())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            sizes = dataclasses.replace(sizes, usable=usable)
            memory, largest = _read_refusal(str(error), sizes)
            seconds = time.monotonic() - start
            return Step(memory, False, flops, executed, None, {}, largest, seconds)
        seconds = time.monotonic() - start
        memory = _account(compiled.memory_analysis(), sizes, usable)
        program = read_program(compiled.as_text(), self._domains())
        fits = usable is None or memory.total <= usable
        times = _roofline(self.topology, program, flops, executed)
        return Step(memory, fits, flops, executed, program, times, (), seconds)

    def _options(self) -> dict[str, float | bool]:
        options = {}
        if hasattr(jax.config, "jax_exec_time_optimization_effort"):
            options["exec_time_optimization_effort"] = self.effort
        elif self.effort < 0:
            options["optimization_level"] = _LITTLE_EFFORT
        if self.topology.chip.platform == "cuda":
            # Choosing its tiles takes trials on a GPU, and without them it may fail.
            options["xla_gpu_enable_triton_gemm"] = False
        return options

    def _domains(self) -> list[int]:
        """The slice (TPU) or host (GPU) of each device of the mesh."""
        kind = {"tpu": "slice_index", "cuda": "process_index", "cpu": "process_index"}
        attribute = kind[self.topology.chip.platform]
        return [getattr(device, attribute, 0) for device in self.mesh.devices.flat]


def bytes_per_chip(arrays) -> int:
    """Bytes that one device holds of abstract arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arrays)
    )


def _account(analysis, sizes: Memory, usable: int | None) -> Memory:
    scratch = analysis.temp_size_in_bytes
    gradients = min(sizes.gradients, scratch)
    code = analysis.generated_code_size_in_bytes
    total = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + scratch
        + code
    )
    return dataclasses.replace(
        sizes,
        gradients=gradients,
        activations=scratch - gradients,
        code=code,
        total=total,
        usable=usable,
    )


def _read_refusal(message: str, sizes: Memory) -> tuple[Memory, tuple[str, ...]]:
    """What was needed, and the largest buffers, out of the compiler's error."""
    amount = r"([\d.]+)([KMGT])"
    program = re.search(rf"[Uu]sed {amount} of {amount}", message)
    scratch = re.search(rf"\({amount}\) exceeds available HBM \({amount}\)", message)
    found = program or scratch
    needed, usable = (0, None) if found is None else _amounts(found.groups())
    if scratch:
        sizes = dataclasses.replace(sizes, activations=max(0, needed - sizes.gradients))
        needed += sizes.parameters + sizes.optimizer + sizes.averages + sizes.batch
    buffers = re.findall(
        r"Size: ([\d.]+\w+)\n(?:\s+Operator: op_name=\"([^\"]*)\".*\n)?\s+Shape: (\S+)",
        message,
    )
    largest = tuple(
        f"{size} {re.sub(r'{.*', '', shape)} {name}".strip()
        for size, name, shape in buffers[:5]
    )
    usable = usable or sizes.usable
    return dataclasses.replace(sizes, total=needed, usable=usable), largest


def _amounts(words: tuple[str, ...]) -> list[int]:
    """``("1.5", "G", ...)`` to bytes."""
    return [
        int(float(number) * 2 ** (10 * ("KMGT".index(unit) + 1)))
        for number, unit in zip(words[::2], words[1::2], strict=True)
    ]


def _roofline(
    topology: Topology, program: Program, flops, executed
) -> dict[str, float]:
    """Least seconds by resource; empty where the device is not known."""
    chip, peak = topology.chip, topology.peak_flops
    if peak is None:
        return {}
    times = {
        "compute": executed / peak,
        "memory": program.bytes_moved / chip.bandwidth,
        "interconnect": sum(c.link_bytes for c in program.collectives) / chip.link,
        "network": sum(c.network_bytes for c in program.collectives) / chip.network,
    }
    return times | {"step": max(times.values()), "model": flops / peak}
