// XXH3-64 (seed 0, default secret, more than 240 bytes) by a block of threads, each of which holds some of the bytes in registers.
// Algorithm: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, "XXH3 Algorithm (for large inputs)".
//
// Bytes are seen as rows of 1024 (XXH3's blocks): within one, each of eight accumulators takes a sum modulo 2^64, in any order. A vector of
// 16 bytes adds to two accumulators only, so a warp that holds a row reduces it to eight words of block memory. Only the rows' scrambles
// are sequential: eight threads do them, a few microseconds for a 256 KiB chunk, while the others move the next chunk.
#pragma once

#include "transfer/cuda/kernels/piece_kernels.h"
#include "transfer/cuda/kernels/thread_block.h"

namespace moonpool::transfer::cuda::kernels {

inline constexpr std::uint32_t kRow = 1024;
inline constexpr std::uint32_t kStripe = 64;
inline constexpr std::uint32_t kMostRows = kLargestChunk / kRow;

// The default secret's 192 bytes.
MOONPOOL_CONSTANT std::uint64_t kSecret[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82,
    0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5,
    0x49daf0b751dd0d17, 0x9e68d429265516d3, 0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af};
inline constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9,
                               kPrime4 = 0x85EBCA77C2B2AE63, kPrime5 = 0x27D4EB2F165667C5;
inline constexpr std::uint32_t kShortPrime1 = 0x9E3779B1, kShortPrime2 = 0x85EBCA77, kShortPrime3 = 0xC2B2AE3D;
MOONPOOL_CONSTANT std::uint64_t kFirstAccumulators[8] = {kShortPrime3, kPrime1,      kPrime2, kPrime3,
                                                         kPrime4,      kShortPrime2, kPrime5, kShortPrime1};

// What a chunk's threads leave for those that finish its checksum.
struct ChunkSums {
  std::uint64_t rows[kMostRows][8];
  std::uint64_t tail[10];  // the vectors with the last 64 bytes
  std::uint64_t accumulators[8];
};

MOONPOOL_DEVICE std::uint64_t product_of_halves(std::uint64_t value) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(value)) * static_cast<std::uint32_t>(value >> 32);
}

// What a vector adds to its two accumulators.
MOONPOOL_DEVICE Vector contribution(Vector data, Vector key) {
  return {data.high + product_of_halves(data.low ^ key.low), data.low + product_of_halves(data.high ^ key.high)};
}

// The secret's part for the vector at `position`, counted in vectors from the row's start.
MOONPOOL_DEVICE Vector key_of(std::uint32_t position) {
  const std::uint32_t word = position / 4 + 2 * (position % 4);
  return {kSecret[word], kSecret[word + 1]};
}

// Eight bytes at any offset of an array of words.
MOONPOOL_DEVICE std::uint64_t word_at(const std::uint64_t* words, std::uint32_t byte) {
  const std::uint32_t shift = byte % 8 * 8;
  const std::uint64_t low = words[byte / 8];
  return shift == 0 ? low : (low >> shift) | (words[byte / 8 + 1] << (64 - shift));
}

// Called by lanes 0 to 7 of one warp, after all that the chunk's threads have left; the accumulator of that number at the end.
MOONPOOL_DEVICE std::uint64_t finished_accumulator(ChunkSums& sums, std::uint32_t length, std::uint32_t lane) {
  const std::uint32_t full_rows = (length - 1) / kRow;
  const std::uint64_t scramble_key = kSecret[16 + lane];
  std::uint64_t accumulator = kFirstAccumulators[lane];
  MOONPOOL_UNROLLED_BY_FOUR for (std::uint32_t row = 0; row < full_rows; ++row) {
    accumulator += take(sums.rows[row][lane]);
    accumulator = (accumulator ^ (accumulator >> 47) ^ scramble_key) * kShortPrime1;
  }
  accumulator += take(sums.rows[full_rows][lane]);
  const std::uint32_t last = (length - kStripe) % sizeof(Vector);  // where the last stripe is in the tail
  const std::uint64_t keyed = word_at(sums.tail, last + 8 * lane) ^ word_at(kSecret, 192 - kStripe - 7 + 8 * lane);
  return accumulator + word_at(sums.tail, last + 8 * (lane ^ 1)) + product_of_halves(keyed);
}

MOONPOOL_DEVICE std::uint64_t merged(const std::uint64_t (&accumulators)[8], std::uint32_t length) {
  std::uint64_t hash = length * kPrime1;
  MOONPOOL_UNROLLED for (std::uint32_t i = 0; i < 4; ++i) {
    const std::uint64_t a = accumulators[2 * i] ^ word_at(kSecret, 11 + 16 * i);
    const std::uint64_t b = accumulators[2 * i + 1] ^ word_at(kSecret, 11 + 16 * i + 8);
    hash += (a * b) ^ high_half_of_product(a, b);
  }
  hash = (hash ^ (hash >> 37)) * 0x165667919E3779F9;
  return hash ^ (hash >> 32);
}

}  // namespace moonpool::transfer::cuda::kernels
