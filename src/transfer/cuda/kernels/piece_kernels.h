// What host and kernels agree on: the tables that a launch reads. Compiled by nvcc, by the host's compiler and, for the emulation, by both
// ways at once, so plain C types alone.
//
// A job's bytes are one contiguous range in host memory (or another device's) and a list of pieces in this device's memory. They are cut
// into chunks at the checksum chunks' boundaries (checksum.h); a block of threads takes one chunk after the other. All chunks of all jobs
// are one launch. A chunk's checksum is XXH3-64 with seed 0 and the default secret,
// https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, of the bytes as they are stored; chunks of at most kLeastHashed bytes,
// which XXH3 treats differently, are left to the host.
#pragma once

#include <cstdint>

namespace moonpool::transfer::cuda {

struct PieceEntry {
  // Where the job's first byte would be if this piece began with it: the piece's address in device memory minus its offset in the job's
  // bytes, modulo 2^64. So byte x of the job, x in this piece, is at origin + x, whichever byte of the piece a chunk begins with.
  std::uint64_t origin;
  std::uint64_t end;  // offset in the job's bytes of the first byte behind this piece
};

struct ChunkEntry {
  std::uint64_t contiguous;   // device address of the chunk's first byte in the contiguous memory
  std::uint64_t offset;       // of the chunk's first byte in its job's bytes
  std::uint32_t first_piece;  // the piece with that byte, as an index into the launch's pieces; the job's next ones follow it
  std::uint32_t length;       // at most kChecksumChunk
};

enum class Kernel : std::uint32_t {
  kGather,      // pieces to contiguous memory
  kScatter,     // contiguous memory to pieces
  kGatherHash,  // the same with checksums
  kScatterHash,
};
inline constexpr std::uint32_t kKernels = 4;

// The kernels' only parameter, by value. The tables are in memory that the device reads.
struct MoveArguments {
  const PieceEntry* pieces;
  const ChunkEntry* chunks;
  std::uint64_t* checksums;  // of each chunk, in pinned host memory; untouched for chunks of at most kLeastHashed bytes
  std::uint32_t chunk_count;
};

inline constexpr std::uint32_t kLeastHashed = 240;
inline constexpr std::uint32_t kLargestChunk = 256 * 1024;
inline constexpr std::uint32_t kThreads = 512;  // of a block; fewer work too, in multiples of 32

}  // namespace moonpool::transfer::cuda
