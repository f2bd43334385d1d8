"""What is read from the text of a compiled program, and from a compiler's refusal."""

from mlseg_jax.planning.compiled import read_program, replica_group, type_bytes
from mlseg_jax.planning.planned_step import Memory, _read_refusal
from mlseg_jax.planning.topologies import GIB

HLO = """HloModule jit_step

%fused (p0: f32[24,8,128], p1: s32[]) -> f32[8,128] {
  %p0 = f32[24,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  ROOT %slice = f32[8,128]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8,128}
}

%all-reduce-scatter.1 (input: bf16[64,16]) -> bf16[16,16] {
  %input = bf16[64,16]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[64,16]{1,0} all-reduce(%input), channel_id=7, replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  ROOT %part = bf16[16,16]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={16,16}
}

%body (arg: (s32[], f32[24,8,128])) -> (s32[], f32[24,8,128]) {
  %arg = (s32[]{:T(128)}, f32[24,8,128]{2,1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %w = f32[24,8,128]{2,1,0:T(8,128)} get-tuple-element(%arg), index=1
  %one = f32[8,128]{1,0:T(8,128)} fusion(%w, %i), kind=kLoop, calls=%fused
  %start = (f32[8,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%one), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %done = f32[32,128]{1,0} all-gather-done(%start)
  ROOT %out = (s32[], f32[24,8,128]{2,1,0}) tuple(%i, %w)
}

%cond (arg.1: (s32[], f32[24,8,128])) -> pred[] {
  %arg.1 = (s32[], f32[24,8,128]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %limit = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (x: f32[24,8,128], g: bf16[64,16]) -> bf16[16,16] {
  %x = f32[24,8,128]{2,1,0} parameter(0)
  %g = bf16[64,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %init = (s32[], f32[24,8,128]{2,1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[24,8,128]{2,1,0}) while(%init), condition=%cond, body=%body
  %sum = f32[24,8,128]{2,1,0} all-reduce(%x), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %moved = f32[24,8,128]{2,1,0} collective-permute(%x), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %sent = (bf16[64,16]{1,0}, u32[], token[]) send(%g, %token), channel_id=7, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_TO_ALL"}
  ROOT %scatter = bf16[16,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def test_reading_a_compiled_program():
    # Devices 0-3 are one host, 4-7 the other.
    program = read_program(HLO, [0, 0, 0, 0, 1, 1, 1, 1])
    found = {each.kind: each for each in program.collectives}
    slice_bytes, stack = 8 * 128 * 4, 24 * 8 * 128 * 4
    gather = found["all-gather"]
    # 24 turns of the loop; groups 0 2 4 6: two of each host.
    assert (gather.count, gather.bytes) == (24, 24 * 4 * slice_bytes)
    assert gather.link_bytes == 24 * 4 * slice_bytes / 2
    assert gather.network_bytes == 24 * 4 * slice_bytes / 2 / 2
    assert found["all-reduce"].link_bytes == stack
    assert found["all-reduce"].network_bytes == 0
    assert found["reduce-scatter"].bytes == 64 * 16 * 2
    assert found["collective-permute"].largest == stack
    # Between the two hosts: half of what each chip has.
    assert found["all-to-all"].network_bytes == 64 * 16 * 2 / 2
    assert found["all-to-all"].link_bytes == 0
    # A turn reads an index and a slice, not the stack; the gather its input and output.
    turn = 2 * slice_bytes + 5 * slice_bytes
    rest = 4 * stack + (64 * 16 + 16 * 16) * 2
    assert program.bytes_moved == 24 * (turn + 4) + rest


def test_shapes_and_groups():
    assert type_bytes("(f32[2,3]{1,0}, bf16[4]{0:T(8)S(1)}, s32[])") == 24 + 8 + 4
    assert type_bytes("bf16[4]{0:T(8)S(1)}", only_main_memory=True) == 0
    assert replica_group("replica_groups=[2,4]<=[8], x", 8) == [0, 1, 2, 3]
    assert replica_group("replica_groups={}, x", 4) == [0, 1, 2, 3]
    mesh = "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x={3}"
    assert replica_group(mesh, 8) == [0, 4]


def test_a_refusal_of_the_compiler():
    sizes = Memory(parameters=GIB, gradients=GIB)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 202.50G of 15.75G hbm."
    )
    memory, largest = _read_refusal(message, sizes)
    assert (memory.total, memory.usable) == (202.5 * GIB, 15.75 * GIB)
    assert not largest
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (28.50G) exceeds available HBM (15.75G)."
    )
    memory, _ = _read_refusal(message, sizes)
    assert (memory.total, memory.activations) == (29.5 * GIB, 27.5 * GIB)
    message = (
        "Largest program allocations in hbm:\n\n  1. Size: 4.00G\n"
        '     Operator: op_name="jit(step)/dot"\n     Shape: bf16[8,16]{1,0:T(8,128)}\n'
    )
    assert _read_refusal(message, sizes)[1] == ("4.00G bf16[8,16] jit(step)/dot",)
