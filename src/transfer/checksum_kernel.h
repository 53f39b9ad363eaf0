// XXH3-64 compiled for one instruction set: the same values, two to three times the speed with wide vectors. checksum.cpp chooses at run
// time.
//
// Each kernel is this header in a source file of its own, compiled with that instruction set's flags; such a file includes nothing else, so
// that no inline function of the standard library is ever compiled for a machine that may not be there.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace moonpool::transfer {

struct ChecksumKernel {
  uint64_t (*hash)(const void* bytes, size_t size);
  void (*reset)(void* state);
  void (*update)(void* state, const void* bytes, size_t size);
  uint64_t (*digest)(const void* state);
  // Copies `size` bytes past the caches (non-temporal stores) and updates the state with what it stored, both from one load: no other
  // writer of `from` can make the sum differ from the copy. The stores are ordered before it returns. `size` has to be a multiple of 64,
  // `to` aligned to 64, and the state must have had multiples of 64 bytes only. Null: not for this instruction set.
  void (*stream)(void* state, void* to, const void* from, size_t size);
};

extern const ChecksumKernel kPortableKernel;
#if defined(__x86_64__)
extern const ChecksumKernel kAvx2Kernel;
extern const ChecksumKernel kAvx512Kernel;
#endif

}  // namespace moonpool::transfer

#ifdef MOONPOOL_CHECKSUM_KERNEL
#define XXH_INLINE_ALL
#include <xxhash.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace moonpool::transfer {
static uint64_t kernel_hash(const void* bytes, size_t size) { return XXH3_64bits(bytes, size); }
static void kernel_reset(void* state) { XXH3_64bits_reset(static_cast<XXH3_state_t*>(state)); }
static void kernel_update(void* state, const void* bytes, size_t size) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state), bytes, size);
}
static uint64_t kernel_digest(const void* state) { return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state)); }

// XXH3's long loop (xxhash's doc/xxhash_spec.md, "Step 2: Process Blocks"): a stripe of 64 bytes goes into eight accumulators, which are
// scrambled after every 16th. The library's state carries them from part to part; it finishes the hash.
#if defined(__AVX512F__)
struct Stripe {
  __m512i lanes;
  static Stripe load(const void* from) { return {_mm512_loadu_si512(from)}; }
  void store(void* to) const { _mm512_storeu_si512(to, lanes); }
  void stream(void* to) const { _mm512_stream_si512(static_cast<__m512i*>(to), lanes); }
  void keep() { asm volatile("" : "+v"(lanes)); }  // in its register: never to be loaded again
  Stripe operator^(Stripe other) const { return {_mm512_xor_si512(lanes, other.lanes)}; }
  Stripe operator+(Stripe other) const { return {_mm512_add_epi64(lanes, other.lanes)}; }
  Stripe times_low(Stripe other) const { return {_mm512_mul_epu32(lanes, other.lanes)}; }
  [[nodiscard]] Stripe high_to_low() const { return {_mm512_shuffle_epi32(lanes, static_cast<_MM_PERM_ENUM>(0x31))}; }
  [[nodiscard]] Stripe neighbours_swapped() const { return {_mm512_shuffle_epi32(lanes, static_cast<_MM_PERM_ENUM>(0x4E))}; }
  [[nodiscard]] Stripe right47() const { return {_mm512_srli_epi64(lanes, 47)}; }
  [[nodiscard]] Stripe left32() const { return {_mm512_slli_epi64(lanes, 32)}; }
  static Stripe of(uint32_t value) { return {_mm512_set1_epi32(static_cast<int>(value))}; }
};
#elif defined(__AVX2__)
struct Stripe {
  __m256i low, high;
  static Stripe load(const void* from) {
    const auto* at = static_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  void store(void* to) const {
    _mm256_storeu_si256(static_cast<__m256i*>(to), low);
    _mm256_storeu_si256(static_cast<__m256i*>(to) + 1, high);
  }
  void stream(void* to) const {
    _mm256_stream_si256(static_cast<__m256i*>(to), low);
    _mm256_stream_si256(static_cast<__m256i*>(to) + 1, high);
  }
  void keep() { asm volatile("" : "+x"(low), "+x"(high)); }  // in their registers: never to be loaded again
  Stripe operator^(Stripe other) const { return {_mm256_xor_si256(low, other.low), _mm256_xor_si256(high, other.high)}; }
  Stripe operator+(Stripe other) const { return {_mm256_add_epi64(low, other.low), _mm256_add_epi64(high, other.high)}; }
  Stripe times_low(Stripe other) const { return {_mm256_mul_epu32(low, other.low), _mm256_mul_epu32(high, other.high)}; }
  [[nodiscard]] Stripe high_to_low() const { return {_mm256_shuffle_epi32(low, 0x31), _mm256_shuffle_epi32(high, 0x31)}; }
  [[nodiscard]] Stripe neighbours_swapped() const { return {_mm256_shuffle_epi32(low, 0x4E), _mm256_shuffle_epi32(high, 0x4E)}; }
  [[nodiscard]] Stripe right47() const { return {_mm256_srli_epi64(low, 47), _mm256_srli_epi64(high, 47)}; }
  [[nodiscard]] Stripe left32() const { return {_mm256_slli_epi64(low, 32), _mm256_slli_epi64(high, 32)}; }
  static Stripe of(uint32_t value) { return {_mm256_set1_epi32(static_cast<int>(value)), _mm256_set1_epi32(static_cast<int>(value))}; }
};
#endif

#if defined(__AVX2__)
static void kernel_stream(void* state_memory, void* to_memory, const void* from_memory, size_t size) {
  auto* state = static_cast<XXH3_state_t*>(state_memory);
  auto* to = static_cast<unsigned char*>(to_memory);
  const auto* from = static_cast<const unsigned char*>(from_memory);
  const unsigned char* secret = state->extSecret;
  const Stripe prime = Stripe::of(0x9E3779B1U);  // XXH_PRIME32_1
  Stripe sum = Stripe::load(state->acc);
  size_t stripe = state->nbStripesSoFar;
  for (size_t at = 0; at < size; at += 64) {
    Stripe data = Stripe::load(from + at);
    data.keep();
    _mm_prefetch(reinterpret_cast<const char*>(from) + at + 512, _MM_HINT_T0);
    data.stream(to + at);
    const Stripe keyed = data ^ Stripe::load(secret + 8 * stripe);
    sum = keyed.times_low(keyed.high_to_low()) + (sum + data.neighbours_swapped());
    if (++stripe == state->nbStripesPerBlock) {
      stripe = 0;
      const Stripe mixed = sum ^ sum.right47() ^ Stripe::load(secret + state->secretLimit);
      sum = mixed.times_low(prime) + mixed.high_to_low().times_low(prime).left32();
    }
  }
  sum.store(state->acc);
  state->nbStripesSoFar = stripe;
  state->totalLen += size;
  _mm_sfence();
}
#else
static constexpr void (*kernel_stream)(void*, void*, const void*, size_t) = nullptr;
#endif
const ChecksumKernel MOONPOOL_CHECKSUM_KERNEL = {kernel_hash, kernel_reset, kernel_update, kernel_digest, kernel_stream};
}  // namespace moonpool::transfer
#endif
