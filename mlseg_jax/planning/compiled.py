"""What a compiled program does, read from its text (HLO after optimisation).

XLA's own cost analysis counts the body of a loop once, and says nothing of collectives.
Here every instruction is counted as often as it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16,
    "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip

_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "iota",
    "send", "recv",
}  # fmt: skip
"""Instructions that move nothing themselves."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a run of the program.

    Attributes:
      kind: one of `COLLECTIVES`.
      count: how many are run.
      bytes: size of what they collect, added up (an all-gather's result, a
        reduce-scatter's input).
      link_bytes: what each chip sends within its slice or host.
      network_bytes: what each chip sends to other slices or hosts.
      largest: size of the largest one, in bytes.
    """

    kind: str
    count: int = 0
    bytes: int = 0
    link_bytes: float = 0.0
    network_bytes: float = 0.0
    largest: int = 0


@dataclasses.dataclass(frozen=True)
class Program:
    """Per chip: bytes to and from memory, and the collectives by kind."""

    bytes_moved: int
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


def read_program(text: str, domains: Sequence[int]) -> Program:
    """``domains``: the slice or host of each device, in the order of the mesh."""
    computations, entry = _parse(text)
    runs = _count_runs(computations, entry)
    bytes_moved = 0
    found: dict[str, tuple] = {}
    for name, (count, is_fused) in runs.items():
        types = {i.name: i.type for i in computations[name]}
        for instruction in computations[name]:
            if not is_fused:
                bytes_moved += count * _traffic(instruction, types, computations)
            kind = _collective_kind(name, instruction)
            if kind is None:
                continue
            # The steps of an asynchronous one are copies of it with one channel; those
            # to the host have numbers of their own.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = instruction.name
            if channel:
                key = f"{instruction.opcode == 'send'} {channel[1]}"
            size = sum(type_bytes(types.get(o, "")) for o in instruction.operands)
            if key not in found or found[key][1] < count:
                found[key] = (kind, count, size, instruction.attributes)
    return Program(int(bytes_moved), _sum_collectives(found.values(), domains))


# ------------------------------------------------------------------------ the text


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions by computation, and the name of the program's own."""
    computations, entry, current = {}, "", None
    # What a Pallas kernel says of itself stands on lines of its own.
    for line in re.sub(r'\n(?="|\}\})', " ", text).splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _parse_instruction(line)
            if instruction:
                current.append(instruction)
    return computations, entry


def _parse_instruction(line: str) -> _Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, after = rest[end:].strip().partition("(")
    close = _closing("(" + after, 0) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", after[:close]))
    if opcode in ("constant", "parameter"):
        operands = (after[:close],)
    return _Instruction(
        head[2], rest[:end], opcode, operands, after[close + 1 :], bool(head[1])
    )


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at ``start`` closes."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text) - 1


def type_bytes(text: str, *, only_main_memory: bool = False) -> int:
    """Bytes of a shape or a tuple of shapes; some lie in memory on the chip itself."""
    total = 0
    for kind, dims, layout in re.findall(
        r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", text
    ):
        if kind not in BITS or (only_main_memory and "S(" in layout):
            continue
        total += math.prod(map(int, filter(None, dims.split(",")))) * BITS[kind] // 8
    return total


# ------------------------------------------------------------------ how often, how much


def _count_runs(computations, entry: str) -> dict[str, tuple[int, bool]]:
    """How often each computation runs, and whether within a fused kernel."""
    runs = collections.defaultdict(lambda: [0, True])
    pending = [(entry, 1, False)]
    while pending:
        name, count, is_fused = pending.pop()
        if name not in computations:
            continue
        runs[name][0] += count
        runs[name][1] &= is_fused
        for instruction in computations[name]:
            attributes, times, fused = instruction.attributes, count, is_fused
            if instruction.opcode == "while":
                times *= _trip_count(instruction, computations)
            elif instruction.opcode in ("fusion", "custom-call"):
                fused = True
            elif instruction.opcode not in ("call", "conditional", "async-start"):
                continue
            for called in re.findall(
                r"(?:body|calls|to_apply|branch_computations|true_computation|"
                r"false_computation)=(\{[^}]*\}|%?[\w.\-]+)",
                attributes,
            ):
                for each in re.findall(r"[\w.\-]+", called):
                    pending.append((each, times, fused))
    return {name: (count, fused) for name, (count, fused) in runs.items()}


def _trip_count(loop: _Instruction, computations) -> int:
    """From the compiler's note, or the constant that the condition compares with."""
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    numbers = [
        int(i.operands[0])
        for i in computations.get(condition[1] if condition else "", [])
        if i.opcode == "constant" and re.fullmatch(r"\d+", i.operands[0])
    ]
    return max(numbers, default=1)


def _traffic(instruction: _Instruction, types: dict[str, str], computations) -> int:
    """Bytes that one run of an instruction reads and writes in the main memory."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    out = type_bytes(instruction.type, only_main_memory=True)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * out
    if opcode == "dynamic-update-slice":
        return 2 * type_bytes(types.get(instruction.operands[1], ""))
    if opcode.endswith("-start"):
        # The type is a tuple of input, result and bookkeeping.
        return out
    sizes = [
        type_bytes(types.get(o, ""), only_main_memory=True)
        for o in instruction.operands
    ]
    called = re.search(r"calls=%?([\w.\-]+)", instruction.attributes)
    if opcode == "fusion" and called and called[1] in computations:
        return _fusion_traffic(computations[called[1]], sizes, out)
    return out + sum(sizes)


def _fusion_traffic(body: list[_Instruction], sizes: list[int], out: int) -> int:
    """A kernel reads only the slices it takes, and writes only the ones it updates."""
    types = {i.name: i.type for i in body}
    users = collections.defaultdict(list)
    for instruction in body:
        for operand in instruction.operands:
            users[operand].append(instruction)
    total = 0
    for instruction in body:
        if instruction.opcode == "parameter" and instruction.operands[0].isdigit():
            number = int(instruction.operands[0])
            size = sizes[number] if number < len(sizes) else 0
            used = users[instruction.name]
            if used and all(u.opcode in ("dynamic-slice", "slice") for u in used):
                size = min(size, sum(type_bytes(u.type) for u in used))
            elif used and all(
                u.opcode == "dynamic-update-slice" and u.operands[0] == instruction.name
                for u in used
            ):
                size = 0
            total += size
        if instruction.is_root and instruction.opcode == "dynamic-update-slice":
            out = min(out, type_bytes(types.get(instruction.operands[1], "")))
    return total + out


# ------------------------------------------------------------------------ collectives


def _collective_kind(computation: str, instruction: _Instruction) -> str | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind == "send":
        # TPU: between slices the hosts exchange what each chip hands them.
        between = re.search(r'_megascale_transfer_type="(\w+)"', instruction.attributes)
        kind = between[1].lower().replace("_", "-") if between else kind
    if kind not in COLLECTIVES:
        return None
    # TPU: one kernel of an all-reduce and the slice of it that is kept.
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        return "reduce-scatter"
    return kind


def _sum_collectives(found, domains: Sequence[int]) -> tuple[Collective, ...]:
    sums = {}
    for kind, count, operand_bytes, attributes in found:
        group = replica_group(attributes, len(domains))
        if "_megascale_" in attributes:
            group = [domains.index(domain) for domain in sorted(set(domains))]
        if len(group) < 2:
            continue
        size = operand_bytes * (len(group) if kind == "all-gather" else 1)
        apart = len({domains[device] for device in group})
        together = len(group) // apart
        link = _sent(kind, size, together if apart > 1 else len(group))
        network = _sent(kind, size, apart) / together if apart > 1 else 0.0
        old = sums.get(kind, Collective(kind))
        sums[kind] = Collective(
            kind,
            old.count + count,
            old.bytes + count * size,
            old.link_bytes + count * link,
            old.network_bytes + count * network,
            max(old.largest, size),
        )
    return tuple(sums[kind] for kind in COLLECTIVES if kind in sums)


def _sent(kind: str, size: int, members: int) -> float:
    """Bytes that each of so many members sends at least."""
    if kind == "collective-permute":
        return float(size) if members > 1 else 0.0
    share = size * (members - 1) / members
    return 2 * share if kind == "all-reduce" else share


def replica_group(attributes: str, num_devices: int) -> list[int]:
    """The devices that the first device of a collective works with."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return [int(x) for x in listed[1].split(",") if x]
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes)
    if pairs:
        return [int(pairs[1]), int(pairs[2])]
    devices = np.arange(num_devices)
    text = re.search(r"replica_groups=(.*)", attributes)
    iota = text and re.match(r"\[([\d,]+)\]<=(.*)", text[1])
    if iota:
        return _ordered(devices, iota[2]).reshape(_numbers(iota[1]))[0].tolist()
    # Axes by name and size, perhaps the order of the devices, then the group's axes.
    mesh = text and re.match(
        r"@?mesh\w*\[([^\]]*)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? "
        r"?\{([^}]*)\}",
        text[1],
    )
    if not mesh:
        return devices.tolist()
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    grid = _ordered(devices, mesh[2] or "").reshape(list(sizes.values()))
    chosen = set(re.findall(r"'(\w+)'", mesh[3]))
    index = tuple(slice(None) if name in chosen else 0 for name in sizes)
    return grid[index].ravel().tolist()


def _ordered(devices: np.ndarray, order: str) -> np.ndarray:
    """``[16,16]T(1,0)``: the devices in that shape, with its axes in another order."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
    if not match:
        return devices
    grid = devices.reshape(_numbers(match[1]))
    return (grid.transpose(_numbers(match[2])) if match[2] else grid).ravel()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
