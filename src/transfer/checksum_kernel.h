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

namespace moonpool::transfer {
static uint64_t kernel_hash(const void* bytes, size_t size) { return XXH3_64bits(bytes, size); }
static void kernel_reset(void* state) { XXH3_64bits_reset(static_cast<XXH3_state_t*>(state)); }
static void kernel_update(void* state, const void* bytes, size_t size) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state), bytes, size);
}
static uint64_t kernel_digest(const void* state) { return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state)); }
const ChecksumKernel MOONPOOL_CHECKSUM_KERNEL = {kernel_hash, kernel_reset, kernel_update, kernel_digest};
}  // namespace moonpool::transfer
#endif
