// The kernels of piece_kernels.h.
//
// A block takes a chunk; a warp takes rows of 1 KiB of it, two vectors of 16 bytes a lane, so that every load and store of a warp is 512
// bytes in a row: four full lines of 128 bytes, which is what a write to host memory has to be to cross PCIe well. (A contiguous side that
// is aligned to 16 bytes but not to 128 is right too, and splits lines.) A warp has kRowsAtOnce rows in flight: it knows where they lie,
// issues all loads, then all stores. Rows that span pieces, that are not aligned to 16 bytes on both sides or that hold the chunk's end are
// moved vector by vector, in the widest words that the addresses allow, down to single bytes.
//
// Occupancy: with the bound of kThreads threads a block, ptxas 13.0 gives 94 to 111 registers a thread for sm_80 and sm_90, up to 128 for
// sm_100 and sm_120, without spills or a stack, and the hashing kernels 33,056 bytes of block memory. So a multiprocessor runs one block of
// 512 threads, with 16 warps x 4 rows = 64 KiB in flight. By Little's law PCIe 5.0 x16 (52 GB/s, a round trip of some 2 us) wants about 104
// KB in flight: two multiprocessors reach it as far as latency goes, 16 have ten times as much (calculated, not measured). Finishing a
// chunk's checksum is 255 dependent scrambles of some 40 cycles, about 6 us; 16 multiprocessors at 52 GB/s have 80 us a chunk.
//
// A warp walks the list of pieces with one cursor; a piece costs each warp a load from the first-level cache. So pieces of 4 KiB cost
// nothing to speak of, pieces of a few bytes a lot.
#include "transfer/cuda/kernels/parallel_xxh3.h"
#include "transfer/cuda/kernels/piece_kernels.h"
#include "transfer/cuda/kernels/thread_block.h"

namespace moonpool::transfer::cuda::kernels {

inline constexpr std::uint32_t kWarp = 32;
inline constexpr std::uint32_t kRowsAtOnce = 4;
inline constexpr std::uint32_t kHalfRow = kRow / 2;
static_assert(kHalfRow == kWarp * sizeof(Vector));

// Block memory of the kernels that hash: while one chunk's checksum is finished, the next chunk's threads write to the other sums.
struct BlockMemory {
  ChunkSums sums[2];
};

// Where a warp or a lane is in the list of pieces. Goes forward only.
class Cursor {
 public:
  MOONPOOL_DEVICE Cursor(const PieceEntry* piece, std::uint64_t at, std::uint64_t stop) : piece_(piece), stop_(stop) {
    end_ = load_table(&piece_->end);
    if (at < end_) {
      enter(at);
    }
  }
  // To the piece with byte `at` of the job, which has to be before `stop`.
  MOONPOOL_DEVICE void seek(std::uint64_t at) {
    if (at >= end_) {
      do {
        ++piece_;
        end_ = load_table(&piece_->end);
      } while (at >= end_);
      enter(at);
    }
  }
  [[nodiscard]] MOONPOOL_DEVICE std::uint64_t end() const { return end_; }
  [[nodiscard]] MOONPOOL_DEVICE std::uint64_t address_of(std::uint64_t at) const { return origin_ + at; }

 private:
  MOONPOOL_DEVICE void enter(std::uint64_t at) {
    const std::uint64_t end = end_ < stop_ ? end_ : stop_;
    origin_ = reach(load_table(&piece_->origin) + at, end - at) - at;
  }

  const PieceEntry* piece_;
  std::uint64_t stop_;
  std::uint64_t end_;
  std::uint64_t origin_ = 0;
};

MOONPOOL_DEVICE void set_byte(Vector& vector, std::uint32_t index, std::uint64_t byte) {
  (index < 8 ? vector.low : vector.high) |= byte << (index % 8 * 8);
}
MOONPOOL_DEVICE std::uint32_t byte_of(Vector vector, std::uint32_t index) {
  return static_cast<std::uint8_t>((index < 8 ? vector.low : vector.high) >> (index % 8 * 8));
}

// The first `count` bytes (up to 16) of a vector at any address.
MOONPOOL_DEVICE Vector load(std::uint64_t address, std::uint32_t count) {
  if (count == sizeof(Vector)) {
    if (address % 16 == 0) {
      return load_16(address);
    }
    if (address % 8 == 0) {
      return {load_8(address), load_8(address + 8)};
    }
    if (address % 4 == 0) {
      const std::uint64_t words[4] = {load_4(address), load_4(address + 4), load_4(address + 8), load_4(address + 12)};
      return {words[0] | words[1] << 32, words[2] | words[3] << 32};
    }
  }
  Vector vector{};
  MOONPOOL_ROLLED for (std::uint32_t i = 0; i < count; ++i) { set_byte(vector, i, load_1(address + i)); }
  return vector;
}

MOONPOOL_DEVICE void store(std::uint64_t address, std::uint32_t count, Vector vector) {
  if (count == sizeof(Vector)) {
    if (address % 16 == 0) {
      store_16(address, vector);
      return;
    }
    if (address % 8 == 0) {
      store_8(address, vector.low);
      store_8(address + 8, vector.high);
      return;
    }
    if (address % 4 == 0) {
      store_4(address, static_cast<std::uint32_t>(vector.low));
      store_4(address + 4, static_cast<std::uint32_t>(vector.low >> 32));
      store_4(address + 8, static_cast<std::uint32_t>(vector.high));
      store_4(address + 12, static_cast<std::uint32_t>(vector.high >> 32));
      return;
    }
  }
  MOONPOOL_ROLLED for (std::uint32_t i = 0; i < count; ++i) { store_1(address + i, byte_of(vector, i)); }
}

// The same in the pieces, from byte `at` of the job on.
MOONPOOL_DEVICE Vector load_pieces(Cursor& cursor, std::uint64_t at, std::uint32_t count) {
  cursor.seek(at);
  if (at + count <= cursor.end()) {
    return load(cursor.address_of(at), count);
  }
  Vector vector{};
  MOONPOOL_ROLLED for (std::uint32_t i = 0; i < count; ++i) {
    cursor.seek(at + i);
    set_byte(vector, i, load_1(cursor.address_of(at + i)));
  }
  return vector;
}

MOONPOOL_DEVICE void store_pieces(Cursor& cursor, std::uint64_t at, std::uint32_t count, Vector vector) {
  cursor.seek(at);
  if (at + count <= cursor.end()) {
    store(cursor.address_of(at), count, vector);
    return;
  }
  MOONPOOL_ROLLED for (std::uint32_t i = 0; i < count; ++i) {
    cursor.seek(at + i);
    store_1(cursor.address_of(at + i), byte_of(vector, i));
  }
}

// One chunk, as a lane of a warp sees it.
template <bool kGathers>
class ChunkMove {
 public:
  // `sums`: null if there is nothing to hash.
  MOONPOOL_DEVICE ChunkMove(const MoveArguments& arguments, const ChunkEntry* chunk, bool hashes, ChunkSums* sums)
      : pieces_(arguments.pieces + load_table(&chunk->first_piece)),
        offset_(load_table(&chunk->offset)),
        length_(load_table(&chunk->length)),
        contiguous_(reach(load_table(&chunk->contiguous), length_)),
        sums_(hashes && length_ > kLeastHashed ? sums : nullptr) {}

  [[nodiscard]] MOONPOOL_DEVICE std::uint32_t length() const { return length_; }
  [[nodiscard]] MOONPOOL_DEVICE bool hashed() const { return sums_ != nullptr; }

  // All rows of this thread's warp.
  MOONPOOL_DEVICE void move(Vector first_key, Vector second_key) {
    const std::uint32_t warps = thread_count() / kWarp;
    const std::uint32_t rows = (length_ + kRow - 1) / kRow;
    std::uint32_t first = thread_index() / kWarp;
    if (first >= rows) {
      return;
    }
    Cursor cursor(pieces_, offset_ + first * kRow, offset_ + length_);
    for (; first < rows; first += kRowsAtOnce * warps) {
      cursor.seek(offset_ + first * kRow);
      Cursor behind = cursor;
      const std::uint32_t moved = move_quick_rows(cursor, first, warps, first_key, second_key);
      MOONPOOL_ROLLED for (std::uint32_t i = 0; i < kRowsAtOnce && first + i * warps < rows; ++i) {
        if ((moved >> i & 1) == 0) {
          move_row(behind, first + i * warps, first_key, second_key);
        }
      }
    }
  }

 private:
  // Those of the rows first, first + step, ... that lie in one piece, aligned, and not at the chunk's end; a bit for each. The cursor goes
  // to the last.
  MOONPOOL_DEVICE std::uint32_t move_quick_rows(Cursor& cursor, std::uint32_t first, std::uint32_t step, Vector first_key,
                                                Vector second_key) {
    const std::uint32_t lane = thread_index() % kWarp;
    // Rows whose bytes are all there, and not among the last 64.
    const std::uint32_t whole_rows = (hashed() ? length_ - kStripe : length_) / kRow;
    bool quick[kRowsAtOnce];
    std::uint64_t address[kRowsAtOnce];  // in the pieces
    Vector vectors[kRowsAtOnce][2];
    MOONPOOL_UNROLLED for (std::uint32_t i = 0; i < kRowsAtOnce; ++i) {
      const std::uint32_t row = first + i * step;
      quick[i] = false;
      if (row < whole_rows) {
        const std::uint64_t at = offset_ + row * kRow;
        cursor.seek(at);
        address[i] = cursor.address_of(at);
        quick[i] = at + kRow <= cursor.end() && (address[i] | contiguous_) % sizeof(Vector) == 0;
      }
    }
    MOONPOOL_UNROLLED for (std::uint32_t i = 0; i < kRowsAtOnce; ++i) {
      if (quick[i]) {
        const std::uint64_t from = (kGathers ? address[i] : contiguous_ + (first + i * step) * kRow) + lane * sizeof(Vector);
        vectors[i][0] = load_16(from);
        vectors[i][1] = load_16(from + kHalfRow);
      }
    }
    MOONPOOL_UNROLLED for (std::uint32_t i = 0; i < kRowsAtOnce; ++i) {
      if (quick[i]) {
        const std::uint64_t to = (kGathers ? contiguous_ + (first + i * step) * kRow : address[i]) + lane * sizeof(Vector);
        store_16(to, vectors[i][0]);
        store_16(to + kHalfRow, vectors[i][1]);
      }
    }
    std::uint32_t moved = 0;
    MOONPOOL_UNROLLED for (std::uint32_t i = 0; i < kRowsAtOnce; ++i) {
      if (quick[i]) {
        moved |= 1U << i;
        if (hashed()) {
          const Vector one = contribution(vectors[i][0], first_key), other = contribution(vectors[i][1], second_key);
          sum_by_quarter_lanes(sums_->rows[first + i * step], lane, {one.low + other.low, one.high + other.high});
        }
      }
    }
    return moved;
  }

  // A row of any alignment, in any number of pieces, of which only the beginning may be there. The cursor is at the row or before it.
  MOONPOOL_DEVICE void move_row(Cursor cursor, std::uint32_t row, Vector first_key, Vector second_key) {
    const std::uint32_t lane = thread_index() % kWarp;
    const std::uint32_t begin = row * kRow + lane * static_cast<std::uint32_t>(sizeof(Vector));
    Vector vectors[2];
    Cursor to = cursor;
    MOONPOOL_UNROLLED for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t at = begin + i * kHalfRow;
      const std::uint32_t count = count_at(at);
      if (count != 0) {
        vectors[i] = kGathers ? load_pieces(cursor, offset_ + at, count) : load(contiguous_ + at, count);
      }
    }
    MOONPOOL_UNROLLED for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint32_t at = begin + i * kHalfRow;
      const std::uint32_t count = count_at(at);
      if (count != 0) {
        if (kGathers) {
          store(contiguous_ + at, count, vectors[i]);
        } else {
          store_pieces(to, offset_ + at, count, vectors[i]);
        }
      }
    }
    if (hashed()) {
      Vector sum{};
      MOONPOOL_UNROLLED for (std::uint32_t i = 0; i < 2; ++i) {
        const std::uint32_t at = begin + i * kHalfRow;
        if (at / kStripe < (length_ - 1) / kStripe) {
          const Vector part = contribution(vectors[i], i == 0 ? first_key : second_key);
          sum = {sum.low + part.low, sum.high + part.high};
        }
        const std::uint32_t tail = (length_ - kStripe) / sizeof(Vector) * sizeof(Vector);
        if (at >= tail && at < length_) {
          sums_->tail[(at - tail) / 8] = vectors[i].low;
          sums_->tail[(at - tail) / 8 + 1] = vectors[i].high;
        }
      }
      sum_by_quarter_lanes(sums_->rows[row], lane, sum);
    }
  }

  // Bytes of the vector at this place of the chunk.
  [[nodiscard]] MOONPOOL_DEVICE std::uint32_t count_at(std::uint32_t at) const {
    const std::uint32_t left = at < length_ ? length_ - at : 0;
    return left < sizeof(Vector) ? left : static_cast<std::uint32_t>(sizeof(Vector));
  }

  const PieceEntry* pieces_;
  std::uint64_t offset_;
  std::uint32_t length_;
  std::uint64_t contiguous_;
  ChunkSums* sums_;
};

template <bool kGathers>
MOONPOOL_DEVICE void move_chunks(const MoveArguments& arguments) {
  for (std::uint64_t chunk = block_index(); chunk < arguments.chunk_count; chunk += block_count()) {
    ChunkMove<kGathers>(arguments, arguments.chunks + chunk, false, nullptr).move({}, {});
  }
}

// One meeting of the block's threads a chunk: all have left what they know of it, and its first warp, which finishes the checksum, has
// finished the previous one.
template <bool kGathers>
MOONPOOL_DEVICE void move_and_hash_chunks(const MoveArguments& arguments, BlockMemory& memory) {
  const std::uint32_t thread = thread_index();
  const Vector first_key = key_of(thread % kWarp), second_key = key_of(kWarp + thread % kWarp);
  std::uint32_t turn = 0;
  for (std::uint64_t chunk = block_index(); chunk < arguments.chunk_count; chunk += block_count()) {
    ChunkSums& sums = memory.sums[turn % 2];
    ChunkMove<kGathers> move(arguments, arguments.chunks + chunk, true, &sums);
    move.move(first_key, second_key);
    if (!move.hashed()) {
      continue;
    }
    ++turn;
    synchronize_block();
    if (thread < kWarp) {
      if (thread < 8) {
        sums.accumulators[thread] = finished_accumulator(sums, move.length(), thread);
      }
      synchronize_warp();
      if (thread == 0) {
        const std::uint64_t to = reach(reinterpret_cast<std::uint64_t>(arguments.checksums + chunk), sizeof(std::uint64_t));
        store_8(to, merged(sums.accumulators, move.length()));
      }
    }
  }
}

}  // namespace moonpool::transfer::cuda::kernels

namespace moonpool::transfer::cuda {

MOONPOOL_KERNEL(moonpool_gather, kThreads) { kernels::move_chunks<true>(arguments); }
MOONPOOL_KERNEL(moonpool_scatter, kThreads) { kernels::move_chunks<false>(arguments); }
MOONPOOL_KERNEL(moonpool_gather_hash, kThreads) {
  MOONPOOL_BLOCK_MEMORY(kernels::BlockMemory, memory);
  kernels::move_and_hash_chunks<true>(arguments, memory);
}
MOONPOOL_KERNEL(moonpool_scatter_hash, kThreads) {
  MOONPOOL_BLOCK_MEMORY(kernels::BlockMemory, memory);
  kernels::move_and_hash_chunks<false>(arguments, memory);
}

}  // namespace moonpool::transfer::cuda
