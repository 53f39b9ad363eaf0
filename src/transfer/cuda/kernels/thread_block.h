// What a kernel asks of the machine that runs it, in two versions: CUDA's, when nvcc compiles it, and host threads' (emulation.cpp), when
// the host's compiler does.
//
// Everything that differs is here, so that the kernels' source has no second branch. reach() is where the emulation looks an address up: a
// kernel says once which bytes it is about to touch, and computes addresses from the answer. On a device it costs nothing.
// Included by piece_kernels.cu and by emulation.cpp alone.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef __CUDACC__
#include <atomic>
#include <cstring>
#endif

namespace moonpool::transfer::cuda::kernels {

// Sixteen bytes, little endian: what a thread moves at a time.
struct Vector {
  std::uint64_t low, high;
};

#ifdef __CUDACC__

#define MOONPOOL_DEVICE __device__ __forceinline__
#define MOONPOOL_KERNEL(name, threads) \
  extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ MoveArguments arguments)
#define MOONPOOL_BLOCK_MEMORY(Type, name) __shared__ Type name
#define MOONPOOL_CONSTANT __constant__ const
// Before a loop whose variables have to be registers, or whose body should be there once.
#define MOONPOOL_UNROLLED _Pragma("unroll")
#define MOONPOOL_ROLLED _Pragma("unroll 1")
#define MOONPOOL_UNROLLED_BY_FOUR _Pragma("unroll 4")

MOONPOOL_DEVICE std::uint32_t thread_index() { return threadIdx.x; }
MOONPOOL_DEVICE std::uint32_t thread_count() { return blockDim.x; }
MOONPOOL_DEVICE std::uint32_t block_index() { return blockIdx.x; }
MOONPOOL_DEVICE std::uint32_t block_count() { return gridDim.x; }
MOONPOOL_DEVICE void synchronize_block() { __syncthreads(); }
MOONPOOL_DEVICE void synchronize_warp() { __syncwarp(); }

MOONPOOL_DEVICE std::uint64_t reach(std::uint64_t address, std::uint64_t) { return address; }

// Tables are read by many threads and never written while a kernel runs.
MOONPOOL_DEVICE std::uint64_t load_table(const std::uint64_t* entry) { return __ldg(reinterpret_cast<const unsigned long long*>(entry)); }
MOONPOOL_DEVICE std::uint32_t load_table(const std::uint32_t* entry) { return __ldg(entry); }

// Bytes that are moved are touched once: "cs" is evicted first, so that they do not drive a model's weights and activations out of the L2
// cache. Volatile: a value is loaded once, so that what is hashed is what is stored, whoever else writes to `address`.
MOONPOOL_DEVICE Vector load_16(std::uint64_t address) {
  Vector value;
  asm volatile("ld.global.cs.v2.u64 {%0, %1}, [%2];" : "=l"(value.low), "=l"(value.high) : "l"(address));
  return value;
}
MOONPOOL_DEVICE std::uint64_t load_8(std::uint64_t address) {
  std::uint64_t value;
  asm volatile("ld.global.cs.u64 %0, [%1];" : "=l"(value) : "l"(address));
  return value;
}
MOONPOOL_DEVICE std::uint32_t load_4(std::uint64_t address) {
  std::uint32_t value;
  asm volatile("ld.global.cs.u32 %0, [%1];" : "=r"(value) : "l"(address));
  return value;
}
MOONPOOL_DEVICE std::uint32_t load_1(std::uint64_t address) {
  std::uint32_t value;
  asm volatile("ld.global.cs.u8 %0, [%1];" : "=r"(value) : "l"(address));
  return value;
}
MOONPOOL_DEVICE void store_16(std::uint64_t address, Vector value) {
  asm volatile("st.global.cs.v2.u64 [%0], {%1, %2};" : : "l"(address), "l"(value.low), "l"(value.high) : "memory");
}
MOONPOOL_DEVICE void store_8(std::uint64_t address, std::uint64_t value) {
  asm volatile("st.global.cs.u64 [%0], %1;" : : "l"(address), "l"(value) : "memory");
}
MOONPOOL_DEVICE void store_4(std::uint64_t address, std::uint32_t value) {
  asm volatile("st.global.cs.u32 [%0], %1;" : : "l"(address), "r"(value) : "memory");
}
MOONPOOL_DEVICE void store_1(std::uint64_t address, std::uint32_t value) {
  asm volatile("st.global.cs.u8 [%0], %1;" : : "l"(address), "r"(value) : "memory");
}

MOONPOOL_DEVICE std::uint64_t high_half_of_product(std::uint64_t a, std::uint64_t b) { return __umul64hi(a, b); }

// The sum over a warp's lanes that agree modulo 4, of both words, goes to eight words of block memory that no other warp writes to:
// words 2i and 2i + 1 from the lanes i modulo 4. All lanes call it together. take() reads such a word, once.
MOONPOOL_DEVICE void sum_by_quarter_lanes(std::uint64_t (&to)[8], std::uint32_t lane, Vector value) {
  MOONPOOL_UNROLLED for (std::uint32_t distance = 4; distance < 32; distance *= 2) {
    value.low += __shfl_xor_sync(0xFFFFFFFFU, value.low, distance);
    value.high += __shfl_xor_sync(0xFFFFFFFFU, value.high, distance);
  }
  if (lane < 4) {
    to[2 * lane] = value.low;
    to[2 * lane + 1] = value.high;
  }
}
MOONPOOL_DEVICE std::uint64_t take(std::uint64_t& word) { return word; }

#else

#define MOONPOOL_DEVICE inline
#define MOONPOOL_KERNEL(name, threads) static void name(const MoveArguments& arguments)
#define MOONPOOL_BLOCK_MEMORY(Type, name) \
  Type& name = *static_cast<Type*>(moonpool::transfer::cuda::kernels::emulated_block_memory(sizeof(Type)))
#define MOONPOOL_CONSTANT constexpr
#define MOONPOOL_UNROLLED
#define MOONPOOL_ROLLED
#define MOONPOOL_UNROLLED_BY_FOUR

// In emulation.cpp, of the emulated thread that runs.
std::uint32_t thread_index();
std::uint32_t thread_count();
std::uint32_t block_index();
std::uint32_t block_count();
void synchronize_block();
void synchronize_warp();
std::uint64_t reach(std::uint64_t address, std::uint64_t length);
void* emulated_block_memory(std::size_t size);  // zeros before the block's first thread

template <typename Value>
Value load_as(std::uint64_t address) {
  Value value;
  std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof(value));
  return value;
}
template <typename Value>
void store_as(std::uint64_t address, Value value) {
  std::memcpy(reinterpret_cast<void*>(address), &value, sizeof(value));
}

template <typename Value>
Value load_table(const Value* entry) {
  return load_as<Value>(reach(reinterpret_cast<std::uint64_t>(entry), sizeof(Value)));
}
inline Vector load_16(std::uint64_t address) { return load_as<Vector>(address); }
inline std::uint64_t load_8(std::uint64_t address) { return load_as<std::uint64_t>(address); }
inline std::uint32_t load_4(std::uint64_t address) { return load_as<std::uint32_t>(address); }
inline std::uint32_t load_1(std::uint64_t address) { return load_as<std::uint8_t>(address); }
inline void store_16(std::uint64_t address, Vector value) { store_as(address, value); }
inline void store_8(std::uint64_t address, std::uint64_t value) { store_as(address, value); }
inline void store_4(std::uint64_t address, std::uint32_t value) { store_as(address, value); }
inline void store_1(std::uint64_t address, std::uint32_t value) { store_as(address, static_cast<std::uint8_t>(value)); }

inline std::uint64_t high_half_of_product(std::uint64_t a, std::uint64_t b) {
  __extension__ using Product = unsigned __int128;
  return static_cast<std::uint64_t>((static_cast<Product>(a) * b) >> 64);
}

// Host threads add without waiting for each other; who takes a word leaves a zero for the next use.
inline void sum_by_quarter_lanes(std::uint64_t (&to)[8], std::uint32_t lane, Vector value) {
  std::atomic_ref(to[2 * (lane % 4)]).fetch_add(value.low, std::memory_order_relaxed);
  std::atomic_ref(to[2 * (lane % 4) + 1]).fetch_add(value.high, std::memory_order_relaxed);
}
inline std::uint64_t take(std::uint64_t& word) {
  const std::uint64_t value = word;
  word = 0;
  return value;
}

#endif

}  // namespace moonpool::transfer::cuda::kernels
