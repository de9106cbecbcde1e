"""What lies between a model's matrix products, one Triton kernel each: norms, gates, rotary.

All compute in fp32 and round once. T packed tokens, D model dim, F gate's width, N query heads,
K KV heads, H head dim, R rotated dims, the first of a head (rotated as two halves).
"""

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(x_TD, weight_D, out_TD, x_stride, out_stride, size, eps, BLOCK: tl.constexpr):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < size
    x = tl.load(x_TD + row * x_stride + columns, mask=is_inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    weight = tl.load(weight_D + columns, mask=is_inside, other=0.0).to(tl.float32)
    out = (x * scale * weight).to(out_TD.dtype.element_ty)
    tl.store(out_TD + row * out_stride + columns, out, mask=is_inside)


@triton.jit
def add_norms_kernel(
    branch_TD,
    branch_weight_D,
    residual_TD,
    weight_D,
    total_TD,
    out_TD,
    branch_stride,
    residual_stride,
    out_stride,
    size,
    branch_eps,
    eps,
    HAS_BRANCH_NORM: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: the residual and the branch, which may be normed first, added; and the
    sum, as it was stored, normed. ``total`` has the stride of ``out``."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < size
    element = total_TD.dtype.element_ty
    branch = tl.load(branch_TD + row * branch_stride + columns, mask=is_inside, other=0.0)
    branch = branch.to(tl.float32)
    if HAS_BRANCH_NORM:
        scale = tl.rsqrt(tl.sum(branch * branch, axis=0) / size + branch_eps)
        weight = tl.load(branch_weight_D + columns, mask=is_inside, other=0.0).to(tl.float32)
        branch = (branch * scale * weight).to(element).to(tl.float32)
    residual = tl.load(residual_TD + row * residual_stride + columns, mask=is_inside, other=0.0)
    total = (residual.to(tl.float32) + branch).to(element)
    tl.store(total_TD + row * out_stride + columns, total, mask=is_inside)
    if HAS_NORM:
        total = total.to(tl.float32)
        scale = tl.rsqrt(tl.sum(total * total, axis=0) / size + eps)
        weight = tl.load(weight_D + columns, mask=is_inside, other=0.0).to(tl.float32)
        out = (total * scale * weight).to(element)
        tl.store(out_TD + row * out_stride + columns, out, mask=is_inside)


@triton.jit
def gate_kernel(
    x_TG, out_TF, x_stride, out_stride, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    """``x`` rows are gate then up, ``size`` each. One program a stretch of a row. ``ACTIVATION``
    is silu, gelu_tanh or gelu."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < size
    gate_row = x_TG + row * x_stride + columns
    gate = tl.load(gate_row, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_row + size, mask=is_inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(z)) / 2 is sigmoid(2 z)
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    out = (gate * up).to(out_TF.dtype.element_ty)
    tl.store(out_TF + row * out_stride + columns, out, mask=is_inside)


@triton.jit
def _rotate_heads(
    x,
    weight,
    cos,
    sin,
    first_head,
    num_heads,
    head_stride,
    eps,
    HAS_NORM: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    """``HEADS`` heads of one token, in place; pointers are that token's."""
    heads = (first_head + tl.arange(0, HEADS)).to(tl.int64)[:, None]
    is_head = heads < num_heads
    halves = tl.arange(0, HALF_BLOCK)
    is_half = halves < HALF
    is_inside = is_head & is_half[None, :]
    x_first = x + heads * head_stride + halves[None, :]
    first = tl.load(x_first, mask=is_inside, other=0.0).to(tl.float32)
    second = tl.load(x_first + HALF, mask=is_inside, other=0.0).to(tl.float32)
    # Dims past the rotated ones are normed, where there is a norm, and else stay as they are.
    HAS_REST: tl.constexpr = HAS_NORM and REST > 0
    rests = 2 * HALF + tl.arange(0, REST_BLOCK)
    is_rest = rests < 2 * HALF + REST
    is_rest_inside = is_head & is_rest[None, :]
    x_rest = x + heads * head_stride + rests[None, :]
    if HAS_REST:
        rest = tl.load(x_rest, mask=is_rest_inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        if HAS_REST:
            squares += tl.sum(rest * rest, axis=1)
        scale = tl.rsqrt(squares / (2 * HALF + REST) + eps)[:, None]
        first_weight = tl.load(weight + halves, mask=is_half, other=0.0).to(tl.float32)
        second_weight = tl.load(weight + HALF + halves, mask=is_half, other=0.0).to(tl.float32)
        first = first * scale * first_weight[None, :]
        second = second * scale * second_weight[None, :]
        if HAS_REST:
            rest_weight = tl.load(weight + rests, mask=is_rest, other=0.0).to(tl.float32)
            rest = (rest * scale * rest_weight[None, :]).to(x.dtype.element_ty)
            tl.store(x_rest, rest, mask=is_rest_inside)
    first_cos = tl.load(cos + halves, mask=is_half, other=0.0).to(tl.float32)[None, :]
    second_cos = tl.load(cos + HALF + halves, mask=is_half, other=0.0).to(tl.float32)[None, :]
    first_sin = tl.load(sin + halves, mask=is_half, other=0.0).to(tl.float32)[None, :]
    second_sin = tl.load(sin + HALF + halves, mask=is_half, other=0.0).to(tl.float32)[None, :]
    turned = (first * first_cos - second * first_sin).to(x.dtype.element_ty)
    tl.store(x_first, turned, mask=is_inside)
    turned = (second * second_cos + first * second_sin).to(x.dtype.element_ty)
    tl.store(x_first + HALF, turned, mask=is_inside)


@triton.jit
def rotary_kernel(
    query,
    key,
    query_weight,
    key_weight,
    cos,
    sin,
    query_head_stride,
    query_token_stride,
    key_head_stride,
    key_token_stride,
    cos_stride,
    sin_stride,
    num_heads,
    num_kv_heads,
    query_eps,
    key_eps,
    HAS_QUERY_NORM: tl.constexpr,
    HAS_KEY_NORM: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    """One program a token and ``HEADS`` of its query heads, or of its key heads after them."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    num_query_groups = tl.cdiv(num_heads, HEADS)
    cos += token * cos_stride
    sin += token * sin_stride
    if group < num_query_groups:
        _rotate_heads(
            query + token * query_token_stride,
            query_weight,
            cos,
            sin,
            group * HEADS,
            num_heads,
            query_head_stride,
            query_eps,
            HAS_QUERY_NORM,
            HALF,
            REST,
            HALF_BLOCK,
            REST_BLOCK,
            HEADS,
        )
    else:
        _rotate_heads(
            key + token * key_token_stride,
            key_weight,
            cos,
            sin,
            (group - num_query_groups) * HEADS,
            num_kv_heads,
            key_head_stride,
            key_eps,
            HAS_KEY_NORM,
            HALF,
            REST,
            HALF_BLOCK,
            REST_BLOCK,
            HEADS,
        )
