"""The forward kernel of `flash_forward` for Hopper GPUs, with the schedule written by hand, in Gluon.

Triton puts a wait behind every product whose result is used next, so a program's tensor cores stand still
while it takes its softmax. Gluon, the language that Triton is built from, leaves the waiting to the author
(FlashAttention-3: Shah and others, 2024). One warp of a program only fetches tiles. Two groups of four warps
compute 64 queries each; a group asks for the scores of the next block of keys and, behind them, for the
weighted mean of this one, and takes its softmax of those scores while the tensor cores work on the mean.

What is computed, and what the arguments mean, is the same. On an H100 with D = 128 it takes 0.82 of the time
at T = 4096 and 0.78 at T = 16384; with D = 64 it gains nothing. It cannot run in the interpreter.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from kernels.triton.arithmetic import LOG2_E
from kernels.triton.flash_forward import ANY_NUMBER, LOWEST, _keys_seen, _visible
from kernels.triton.launch import INTERPRETED, TENSOR, Gpu, Launch, Tiles, cdiv

ROWS = gl.constexpr(64)  # queries that a group of four warps computes: what one product takes
BLOCK_M, BLOCK_N, STAGES = 2 * ROWS.value, 128, 2  # queries of a tile, keys of a block, blocks in flight
BLOCK_D = 128
REGISTERS = 168  # a thread's share of an SM's, for 3 * 4 warps


def pays(here: Gpu, T: int, D: int) -> bool:
    """Whether this kernel is the faster one, where the copy engine can fetch its tiles."""
    return not INTERPRETED and here.capability == 90 and BLOCK_D // 2 < D <= BLOCK_D and T >= 1024


def plan(here: Gpu, q, k, v, sink_stride: int, numbers: tuple, causal: bool, window: bool) -> Launch:
    """A launch with y, q, k, v, sink and lse. `numbers` are those of `flash_forward`, from H to qk_scale."""
    B, T, H, D = q.shape
    units = cdiv(cdiv(T, BLOCK_M), 2) * B * H

    def tiles_of(x, rows: int) -> Tiles:
        (B, T, H, D), (b, t, h, _) = x.shape, x.strides
        block = (1, 1, rows, BLOCK_D)
        layout = gl.NVMMASharedLayout.get_default_for(list(block), gl.bfloat16)  # the same for float16
        return Tiles((B, H, T, D), (b, h, t, 1), block, layout)

    return Launch(
        _hopper_forward_kernel,
        (min(units, here.processors),),
        TENSOR,
        tiles_of(q, ROWS.value), tiles_of(k, BLOCK_N), tiles_of(v, BLOCK_N),
        TENSOR, sink_stride, TENSOR,
        *numbers, units, D, causal, window, STAGES,
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip


@gluon.jit
def _place(unit, half, H, sizes, CAUSAL: gl.constexpr, WINDOW: gl.constexpr, BLOCK_N: gl.constexpr):
    """Batch, head and first query of a tile, and the four bounds of the keys that it sees.

    A unit of work is two tiles of a head, one near the end and one near the start: causal or not, all units
    are alike. The first query is T where there is no second tile.
    """
    T, S, window = sizes[1], sizes[2], sizes[3]
    n_blocks = gl.cdiv(T, 2 * ROWS)
    pairs = gl.cdiv(n_blocks, 2)
    pair = unit % pairs
    start_m = gl.where(half == 0, n_blocks - 1 - pair, pair) * 2 * ROWS
    start_m = gl.where((half == 1) & (2 * pair + 1 == n_blocks), T, start_m)
    last = gl.minimum(start_m + 2 * ROWS, T) - 1
    b0, b1, b2, b3 = _keys_seen(start_m + S - T, last + S - T, S, window, CAUSAL, WINDOW, BLOCK_N)
    return unit // pairs // H, unit // pairs % H, start_m, b0, b1, b2, b3


@gluon.jit
def _fetch(
    tiles, barriers, inputs, outputs, H, T_padded, sizes, units,
    D: gl.constexpr, CAUSAL: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """One warp: asks for q of a tile, then for its keys and values, as far ahead as there is room."""
    Q, K, V = inputs[0], inputs[1], inputs[2]
    q_tiles, k_tiles, v_tiles = tiles
    q_full, q_free, k_full, k_free, v_full, v_free = barriers
    STAGES: gl.constexpr = k_tiles.type.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.type.shape[3]
    group, T = sizes[0], sizes[1]
    block, tile = 0, 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        for half in range(2):
            batch, head, start_m, b0, _, _, b3 = _place(unit, half, H, sizes, CAUSAL, WINDOW, BLOCK_N)
            if start_m < T:
                for part in gl.static_range(2):
                    mbarrier.wait(q_free.index(part), tile % 2 ^ 1)
                    mbarrier.expect(q_full.index(part), Q.block_type.nbytes)
                    at = [batch, head, start_m + part * ROWS, 0]
                    tma.async_copy_global_to_shared(Q, at, q_full.index(part), q_tiles.index(part))
                tile += 1
                for start_n in range((gl.cdiv(b3, BLOCK_N) - 1) * BLOCK_N, b0 - 1, -BLOCK_N):
                    i, phase = block % STAGES, block // STAGES % 2
                    at = [batch, head // group, start_n, 0]
                    mbarrier.wait(k_free.index(i), phase ^ 1)
                    mbarrier.expect(k_full.index(i), K.block_type.nbytes)
                    tma.async_copy_global_to_shared(K, at, k_full.index(i), k_tiles.index(i))
                    mbarrier.wait(v_free.index(i), phase ^ 1)
                    mbarrier.expect(v_full.index(i), V.block_type.nbytes)
                    tma.async_copy_global_to_shared(V, at, v_full.index(i), v_tiles.index(i))
                    block += 1


@gluon.jit
def _softmax_step(
    s, maximum, total, start_n, rows, b1, b2, sizes,
    CAUSAL: gl.constexpr, WINDOW: gl.constexpr, DTYPE: gl.constexpr, LEFT: gl.constexpr,
):  # fmt: skip
    """p as the left factor of a product, the new maximum and total, and by how much the old mean shrinks."""
    T, S, window, qk_scale = sizes[1], sizes[2], sizes[3], sizes[4]
    if (start_n < b1) | (start_n >= b2):
        keys = start_n + gl.arange(0, s.shape[1], gl.SliceLayout(0, s.type.layout))
        visible = _visible(rows[:, None] + (S - T), keys[None, :], S, window, CAUSAL, WINDOW)
        s = gl.where(visible, s, float("-inf"))
    new_maximum = gl.maximum(maximum, gl.max(s, 1) * qk_scale)
    shrink = gl.exp2(maximum - new_maximum)
    p = gl.exp2(s * qk_scale - new_maximum[:, None])
    return gl.convert_layout(p.to(DTYPE), LEFT), new_maximum, total * shrink + gl.sum(p, 1), shrink


@gluon.jit
def _compute(
    tiles, barriers, inputs, outputs, H, T_padded, sizes, units,
    D: gl.constexpr, CAUSAL: gl.constexpr, WINDOW: gl.constexpr, PART: gl.constexpr,
):  # fmt: skip
    """Four warps: the queries from PART * 64 of every tile, its blocks of keys from the last to the first."""
    SINK, sink_stride = inputs[3], inputs[4]
    Y, LSE = outputs
    q_tiles, k_tiles, v_tiles = tiles
    q_full, q_free, k_full, k_free, v_full, v_free = barriers
    STAGES: gl.constexpr = k_tiles.type.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.type.shape[3]
    BLOCK_D: gl.constexpr = k_tiles.type.shape[4]
    DTYPE: gl.constexpr = k_tiles.dtype
    # Where a product leaves its numbers, by thread; p is already where a left factor's numbers must be
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    MEAN: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, MEAN, 2)
    T = sizes[1]
    block, tile = 0, 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        for half in range(2):
            batch, head, start_m, b0, b1, b2, b3 = _place(unit, half, H, sizes, CAUSAL, WINDOW, BLOCK_N)
            if start_m < T:
                start_row = start_m + PART * ROWS
                rows = start_row + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
                maximum = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, SCORES))
                total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
                if SINK is not None:
                    sink = gl.load(SINK + head * sink_stride).to(gl.float32) * LOG2_E
                    maximum = gl.maximum(maximum, sink)
                    total += 1.0
                acc = gl.zeros([ROWS, BLOCK_D], gl.float32, MEAN)
                nothing = gl.zeros([ROWS, BLOCK_N], gl.float32, SCORES)
                q = q_tiles.index(PART).reshape([ROWS, BLOCK_D])
                start_n = (gl.cdiv(b3, BLOCK_N) - 1) * BLOCK_N

                i, phase = block % STAGES, block // STAGES % 2
                mbarrier.wait(q_full.index(PART), tile % 2)
                mbarrier.wait(k_full.index(i), phase)
                k = k_tiles.index(i).reshape([BLOCK_N, BLOCK_D]).permute([1, 0])
                s = warpgroup_mma(q, k, nothing, use_acc=False)
                mbarrier.arrive(k_free.index(i), count=1)
                p, maximum, total, shrink = _softmax_step(
                    s, maximum, total, start_n, rows, b1, b2, sizes, CAUSAL, WINDOW, DTYPE, LEFT
                )
                block += 1
                i_next, phase_next = block % STAGES, block // STAGES % 2
                mbarrier.wait(k_full.index(i_next), phase_next, pred=start_n > b0)
                for start in range(start_n - BLOCK_N, b0 - 1, -BLOCK_N):
                    k = k_tiles.index(i_next).reshape([BLOCK_N, BLOCK_D]).permute([1, 0])
                    s_token = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
                    mbarrier.wait(v_full.index(i), phase)
                    v = v_tiles.index(i).reshape([BLOCK_N, BLOCK_D])
                    acc_token = warpgroup_mma(p, v, acc, is_async=True)
                    s = warpgroup_mma_wait(1, deps=[s_token])  # the scores are there, the mean is under way
                    mbarrier.arrive(k_free.index(i_next), count=1)
                    p_next, maximum, total, shrink = _softmax_step(
                        s, maximum, total, start, rows, b1, b2, sizes, CAUSAL, WINDOW, DTYPE, LEFT
                    )
                    # The assembler moves a softmax behind a wait for products that it does not need, but not
                    # across a branch; so the next keys, whose wait is a loop, are waited for here.
                    block += 1
                    i_later, phase_later = block % STAGES, block // STAGES % 2
                    mbarrier.wait(k_full.index(i_later), phase_later, pred=start > b0)
                    acc, p, p_next = warpgroup_mma_wait(0, deps=[acc_token, p, p_next])
                    mbarrier.arrive(v_free.index(i), count=1)
                    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, MEAN))[:, None]
                    p, i, phase, i_next, phase_next = p_next, i_next, phase_next, i_later, phase_later
                mbarrier.arrive(q_free.index(PART), count=1)
                tile += 1
                mbarrier.wait(v_full.index(i), phase)
                acc = warpgroup_mma(p, v_tiles.index(i).reshape([BLOCK_N, BLOCK_D]), acc)
                mbarrier.arrive(v_free.index(i), count=1)

                acc = acc / gl.convert_layout(total, gl.SliceLayout(1, MEAN))[:, None]
                row = gl.arange(0, ROWS, gl.SliceLayout(1, MEAN))[:, None]
                column = gl.arange(0, BLOCK_D, gl.SliceLayout(0, MEAN))[None, :]
                y = Y + ((gl.cast(batch, gl.int64) * T + start_row) * H + head) * D
                inside = (row < T - start_row) & (column < D)
                gl.store(y + row * (H * D) + column, acc.to(DTYPE), mask=inside)
                lse = gl.where(rows < T, maximum + gl.log2(total), 0.0)
                LSE_head = LSE + (gl.cast(batch, gl.int64) * H + head) * T_padded
                gl.store(LSE_head + rows, lse, mask=rows < T_padded)


@gluon.jit
def _compute_first(
    tiles, barriers, inputs, outputs, H, T_padded, sizes, units,
    D: gl.constexpr, CAUSAL: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    _compute(tiles, barriers, inputs, outputs, H, T_padded, sizes, units, D, CAUSAL, WINDOW, 0)


@gluon.jit
def _compute_second(
    tiles, barriers, inputs, outputs, H, T_padded, sizes, units,
    D: gl.constexpr, CAUSAL: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    _compute(tiles, barriers, inputs, outputs, H, T_padded, sizes, units, D, CAUSAL, WINDOW, 1)


@gluon.jit
def _barriers(count: gl.constexpr, arrivals: gl.constexpr):
    made = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(made.index(i), count=arrivals)
    return made


@gluon.jit(do_not_specialize=[*ANY_NUMBER, "units"])
def _hopper_forward_kernel(
    Y, Q, K, V, SINK, sink_stride, LSE, H, group, T, S, T_padded, window, qk_scale, units,
    D: gl.constexpr, CAUSAL: gl.constexpr, WINDOW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """`units` pairs of tiles, shared out among any number of programs of 3 * 4 warps."""
    tiles = (
        gl.allocate_shared_memory(Q.dtype, [2] + Q.block_type.shape, Q.layout),
        gl.allocate_shared_memory(K.dtype, [STAGES] + K.block_type.shape, K.layout),
        gl.allocate_shared_memory(V.dtype, [STAGES] + V.block_type.shape, V.layout),
    )
    # A tile is full when its bytes have come, and free when all groups that read it have said so
    q_full, q_free = _barriers(2, 1), _barriers(2, 1)
    k_full, k_free = _barriers(STAGES, 1), _barriers(STAGES, 2)
    v_full, v_free = _barriers(STAGES, 1), _barriers(STAGES, 2)
    barriers = (q_full, q_free, k_full, k_free, v_full, v_free)
    inputs, outputs, sizes = (Q, K, V, SINK, sink_stride), (Y, LSE), (group, T, S, window, qk_scale)
    # Registers a thread: 240 for those who compute, 24 for those who fetch, and none are left over
    gl.warp_specialize(
        [
            (
                _compute_first,
                (tiles, barriers, inputs, outputs, H, T_padded, sizes, units, D, CAUSAL, WINDOW),
            ),
            (
                _compute_second,
                (tiles, barriers, inputs, outputs, H, T_padded, sizes, units, D, CAUSAL, WINDOW),
            ),
            (_fetch, (tiles, barriers, inputs, outputs, H, T_padded, sizes, units, D, CAUSAL, WINDOW)),
        ],
        [4, 1],
        [240, 24],
    )
