"""The CUDA source of the kernel that moves KV blocks. Knows neither CuPy nor torch.

It includes nothing, so that it compiles where CUDA's headers are not installed.
"""

from __future__ import annotations

THREADS = 256
UNROLL = 4
ELEMENTS = 8
"""Of one access: 16 bytes of a 2-byte dtype, twice as many of fp32."""
PER_PROGRAM = THREADS * UNROLL * ELEMENTS
MAX_BLOCKS = 65535
"""Of one launch."""

_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

_SOURCE = """
struct alignas(16) Four { unsigned int words[4]; };

struct F32 {
  Four halves[2];
  __device__ float get(int i) const { return __uint_as_float(halves[i / 4].words[i % 4]); }
  __device__ void set(int i, float value) { halves[i / 4].words[i % 4] = __float_as_uint(value); }
};

struct Halfwords {
  Four whole;
  __device__ unsigned int bits(int i) const { return whole.words[i / 2] >> (i % 2 * 16) & 0xffff; }
  __device__ void set_bits(int i, unsigned int bits) {
    unsigned int other = i % 2 ? whole.words[i / 2] & 0xffff : 0;
    whole.words[i / 2] = other | bits << (i % 2 * 16);
  }
};

struct BF16 : Halfwords {
  __device__ float get(int i) const { return __uint_as_float(bits(i) << 16); }
  __device__ void set(int i, float value) {
    unsigned int word = __float_as_uint(value);
    bool is_nan = (word & 0x7fffffff) > 0x7f800000;
    // To nearest, ties to even.
    set_bits(i, is_nan ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
};

struct F16 : Halfwords {
  __device__ float get(int i) const {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits(i)));
    return value;
  }
  __device__ void set(int i, float value) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    set_bits(i, half);
  }
};

template <typename From, typename To>
struct Convert {
  __device__ static To of(const From& from) {
    To to;
#pragma unroll
    for (int i = 0; i < ELEMENTS; ++i) to.set(i, from.get(i));
    return to;
  }
};

template <typename Same>
struct Convert<Same, Same> {
  __device__ static Same of(const Same& same) { return same; }
};

// One row of the grid per block. Ids are null where rows are in order; strides and elements
// count elements.
extern "C" __global__ void __launch_bounds__(THREADS) move_blocks(
    const char* source, const long long* source_ids, long long source_stride,
    char* target, const long long* target_ids, long long target_stride,
    long long num_elements) {
  long long row = blockIdx.y;
  long long from = (source_ids ? source_ids[row] : row) * source_stride / ELEMENTS;
  long long to = (target_ids ? target_ids[row] : row) * target_stride / ELEMENTS;
  const FROM* sources = reinterpret_cast<const FROM*>(source) + from;
  TO* targets = reinterpret_cast<TO*>(target) + to;
  long long count = num_elements / ELEMENTS;
  long long first = (long long)blockIdx.x * THREADS * UNROLL + threadIdx.x;
  FROM loaded[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u)
    if (first + u * THREADS < count) loaded[u] = sources[first + u * THREADS];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u)
    if (first + u * THREADS < count)
      targets[first + u * THREADS] = Convert<FROM, TO>::of(loaded[u]);
}
"""


def source_of(source: str, target: str) -> str:
    """For dtypes by their names in a layout."""
    constants = {
        "THREADS": THREADS,
        "UNROLL": UNROLL,
        "ELEMENTS": ELEMENTS,
        "FROM": _TYPES[source],
        "TO": _TYPES[target],
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    return defines + _SOURCE
