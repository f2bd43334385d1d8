"""What a configuration needs on machines that one does not have (``docs/planning.md``).

The real training step and the prediction of a batch of windows are compiled ahead of
time for a described topology, with no accelerator present.
"""

import dataclasses
import math
from typing import Any

import ml_collections
from jax.sharding import Mesh

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.distributed.sharding import AXES, make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel, check_config, num_ranks
from mlseg_jax.planning.planned_step import EFFORT, Step, StepCompiler
from mlseg_jax.planning.topologies import GIB, Topology, devices, parse_topology

LARGEST_BATCH = 4096
TABLE_CLASSES = (150, 1284, 10_000)
TABLE_RANKS = (50, 100, 400)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration on a topology.

    Attributes:
      mesh: devices along (data, fsdp).
      num_classes, num_ranks: C and K.
      train, predict: the two programs; no prediction where it was not asked for.
      images_per_second, mfu_bound, days: of training, at the roofline's speed; None
        where the step does not fit or nothing is known of the device.
      advice: what to change where training does not fit, else "".
    """

    config: str
    topology: str
    num_chips: int
    mesh: tuple[int, int]
    num_classes: int
    num_ranks: int
    crop_size: tuple[int, int]
    num_parameters: int
    batch_per_chip: int
    batch_size: int
    train_steps: int
    train: Step
    predict: Step | None
    images_per_second: float | None
    mfu_bound: float | None
    days: float | None
    advice: str

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def plan(
    config: ml_collections.ConfigDict,
    topology: Topology | str,
    batch_per_chip: int | None = None,
    *,
    with_predict: bool = True,
    effort: float = EFFORT,
) -> Plan:
    """Compiles and accounts; ``batch_per_chip`` defaults to the configuration's share.

    Raises `UserError` where the topology is not known, its compiler is not installed,
    or the mesh does not fit it.
    """
    check_config(config)
    if isinstance(topology, str):
        topology = parse_topology(topology)
    num_classes = config.data.num_classes
    if num_classes == 0:
        num_classes = open_dataset(config.data, train=True).info.num_classes
    if batch_per_chip is None:
        batch_per_chip = max(1, config.train.batch_size // topology.num_chips)
    if batch_per_chip < 1 or batch_per_chip % config.train.accumulate:
        raise UserError(
            f"{batch_per_chip} images per chip do not split into train.accumulate="
            f"{config.train.accumulate} parts; set --batch to a multiple of it."
        )
    mesh = make_mesh(config, devices(topology))
    model = FunctionalModel.build(config, num_classes)
    compiler = StepCompiler(config, topology, mesh, model, batch_per_chip, effort)
    train = compiler.train()
    predict = compiler.predict() if with_predict else None
    seconds = train.seconds.get("step")
    images = batch_per_chip * topology.num_chips
    return Plan(
        config=config.name,
        topology=topology.name,
        num_chips=topology.num_chips,
        mesh=tuple(mesh.shape[axis] for axis in AXES),
        num_classes=num_classes,
        num_ranks=num_ranks(config, num_classes),
        crop_size=tuple(config.data.crop_size),
        num_parameters=model.num_parameters,
        batch_per_chip=batch_per_chip,
        batch_size=images,
        train_steps=config.train.steps,
        train=train,
        predict=predict,
        images_per_second=images / seconds if seconds else None,
        mfu_bound=train.seconds["model"] / seconds if seconds else None,
        days=config.train.steps * seconds / 86400 if seconds else None,
        advice="" if train.fits else _advice(config, mesh, train, batch_per_chip),
    )


def largest_batch(
    config: ml_collections.ConfigDict,
    topology: Topology | str,
    start: int = 1,
    *,
    effort: float = EFFORT,
) -> int:
    """Images per chip that fit in training: powers of two, then one size between.

    One compilation for each size that is tried. 0 where not even one image fits.
    """
    if isinstance(topology, str):
        topology = parse_topology(topology)
    if topology.usable_memory is None:
        raise UserError(
            f"The memory of {topology.name} is not known, so no batch is the largest; "
            f"ask for a TPU or GPU topology."
        )
    parts = config.train.accumulate

    def fits(size: int) -> bool:
        made = plan(config, topology, size * parts, with_predict=False, effort=effort)
        return made.train.fits

    size = 2 ** int(math.log2(max(1, start // parts)))
    if fits(size):
        while size < LARGEST_BATCH and fits(2 * size):
            size *= 2
    else:
        size //= 2
        while size and not fits(size):
            size //= 2
    middle = size + size // 2
    return parts * (middle if middle > size and fits(middle) else size)


def label_table(
    config: ml_collections.ConfigDict,
    topology: Topology | str,
    batch_per_chip: int | None = None,
    *,
    classes: tuple[int, ...] = TABLE_CLASSES,
    ranks: tuple[int, ...] = TABLE_RANKS,
    effort: float = EFFORT,
) -> list[dict[str, Any]]:
    """What C and K cost in training; one compilation for each pair with K <= C, or for
    each C where a model is trained with all ranks.
    """
    pairs = [(c, k) for c in classes for k in ranks if k <= c]
    if config.selection.name == "complete":
        pairs = [(c, c) for c in classes]
    rows = []
    for c, k in pairs:
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.data.num_classes, changed.selection.k = c, k
        made = plan(
            changed, topology, batch_per_chip, with_predict=False, effort=effort
        )
        rows.append(
            {
                "C": c,
                "K": made.num_ranks,
                "fits": made.train.fits,
                "bytes": made.train.memory.total,
                "parameters": made.num_parameters,
                "flops_per_image": made.train.flops_per_chip / made.batch_per_chip,
                "step_seconds": made.train.seconds.get("step"),
            }
        )
    return rows


def _advice(config, mesh: Mesh, train: Step, batch_per_chip: int) -> str:
    """The one change that helps most, for a step that does not fit."""
    memory, backbone = train.memory, config.model.backbone
    state = memory.parameters + memory.optimizer + memory.averages
    split = "split the state: --config.mesh.data=1 --config.mesh.fsdp=-1"
    can_split = mesh.shape["fsdp"] < mesh.size
    if can_split and 4 * state > memory.usable:
        change = split
    elif backbone.remat != "full":
        scan = " --config.model.backbone.scan=True" if "scan" in backbone else ""
        change = (
            f"keep less for the backward pass: --config.model.backbone.remat=full{scan}"
        )
    elif config.model.dtype == "float32":
        change = "compute in half the bytes: --config.model.dtype=bfloat16"
    elif batch_per_chip > 1:
        change = f"take fewer images per chip: --batch={batch_per_chip // 2}"
    elif can_split:
        change = split
    else:
        change = "take chips with more memory or a smaller data.crop_size"
    return f"Training does not fit; {change}."


# ----------------------------------------------------------------------------- words


def as_text(made: Plan) -> str:
    """What a person reads."""
    data, fsdp = made.mesh
    height, width = made.crop_size
    lines = [
        f"{made.config} on {made.topology}: {made.num_chips} chips, mesh data={data} "
        f"fsdp={fsdp}",
        f"C = {made.num_classes}, K = {made.num_ranks}, {height}x{width} pixels, "
        f"{made.num_parameters:,} parameters",
        f"{made.batch_per_chip} images per chip, {made.batch_size} in all",
        "",
        *_step_lines("training step", made.train),
    ]
    if made.images_per_second:
        lines += [
            f"  at best {made.images_per_second:,.0f} images/s, MFU "
            f"{made.mfu_bound:.0%}, {made.train_steps:,} steps in {made.days:.2g} days",
        ]
    if made.predict:
        title = f"prediction of {made.batch_per_chip} windows per chip"
        lines += ["", *_step_lines(title, made.predict)]
    return "\n".join([*lines, *(["", made.advice] if made.advice else [])])


def table_text(rows: list[dict[str, Any]]) -> str:
    head = f"{'C':>6} {'K':>5} {'GiB/chip':>9} {'GFLOP/image':>12} {'ms at best':>11}"
    lines = [head]
    for row in rows:
        seconds = row["step_seconds"]
        lines.append(
            f"{row['C']:6} {row['K']:5} {row['bytes'] / GIB:9.2f} "
            f"{row['flops_per_image'] / 1e9:12,.0f} "
            f"{f'{1e3 * seconds:.1f}' if seconds else '-':>11}"
            + ("" if row["fits"] else "  does not fit")
        )
    return "\n".join(lines)


def _bytes(size: int) -> str:
    """In the unit that leaves one to four digits before the point."""
    unit = next((i for i in (3, 2, 1) if size >= 2 ** (10 * i)), 0)
    name = ("bytes", "KiB", "MiB", "GiB")[unit]
    return f"{size / 2 ** (10 * unit):.{2 if unit == 3 else 0}f} {name}"


def _step_lines(title: str, step: Step) -> list[str]:
    memory = step.memory
    limit = "" if memory.usable is None else f" of {_bytes(memory.usable)}"
    verdict = "" if step.fits else ", DOES NOT FIT"
    lines = [
        f"{title} (compiled in {step.compile_seconds:.0f} s)",
        f"  memory per chip {_bytes(memory.total)}{limit}{verdict}",
    ]
    for field in dataclasses.fields(memory):
        size = getattr(memory, field.name)
        if size and field.name not in ("total", "usable"):
            lines.append(f"    {field.name:20} {_bytes(size):>10}")
    lines += [f"    largest: {buffer}" for buffer in step.largest_buffers]
    flops = f"  {step.flops_per_chip / 1e12:.3g} TFLOP per chip"
    if step.executed_flops_per_chip > step.flops_per_chip:
        again = step.executed_flops_per_chip / 1e12
        flops += f", {again:.3g} with what rematerialisation repeats"
    lines.append(flops)
    if step.program is None:
        return lines
    lines.append(f"  {_bytes(step.program.bytes_moved)} to and from memory per chip")
    for each in step.program.collectives:
        lines.append(
            f"    {each.kind:20} {_bytes(each.bytes):>10} in {each.count}, "
            f"the largest {_bytes(each.largest)}"
        )
    names = ("compute", "memory", "interconnect", "network")
    times = [f"{n} {1e3 * step.seconds[n]:.1f}" for n in names if step.seconds.get(n)]
    if times:
        lines.append(
            f"  at least {1e3 * step.seconds['step']:.1f} ms: {', '.join(times)}"
        )
    return lines
