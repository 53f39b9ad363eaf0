// The page on which an owner announces, to writers and readers of other processes, what it accepts: its term, the oldest live grant, the
// open segments, and which grants were retired. One board per owner; peers map it for reading only.
//
// A writer first announces itself in its ring (write_ring.h), then asks permits(); the owner first changes the board, then looks into the
// rings. All of these are sequentially consistent, so at least one of the two sees the other (Dekker's argument), and no writer touches
// memory that its owner believes to be free.
//
// Retired grants are a bit set, indexed by a hash. A clear bit is exact; a set one may be another grant's, which costs its writer a new
// grant, and a reader a question. Bits are cleared when the oldest live grant has passed them, as in GrantLedger.
// Cost: 66 KiB per owner, four loads per extent written. Threads: any. Ownership: the server's; peers hold views on their mapping.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/ids.h"
#include "base/result.h"
#include "transfer/shm/shared_memory.h"

namespace moonpool::transfer {

inline constexpr std::uint32_t kBoardSegments = 256;

// As it lies in memory; all of it is zero at first.
struct BoardMemory {
  static constexpr std::uint64_t kBits = std::uint64_t{512} * 1024;

  std::atomic<std::uint64_t> term;
  std::atomic<std::uint64_t> oldest;                            // the count of the oldest live grant of that term
  std::array<std::atomic<std::uint64_t>, kBoardSegments> tags;  // of the open segments; 0: closed
  std::array<std::atomic<std::uint64_t>, kBits / 64> retired;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

// Where a segment is on the board. The tag tells one incarnation from the next in its place.
struct BoardPlace {
  std::uint32_t index = 0;
  std::uint64_t tag = 0;
};
[[nodiscard]] inline std::uint64_t tag_of(const Incarnation& incarnation) { return incarnation.low() | 1; }

// A peer's look at a board.
class BoardView {
 public:
  explicit BoardView(const BoardMemory* memory) : memory_(memory) {}
  [[nodiscard]] bool open(const BoardPlace& place) const;
  [[nodiscard]] bool maybe_retired(std::uint64_t offset, Version version) const;
  // Ok when an announced writer may touch the extent; kStaleTerm or kStaleIncarnation otherwise.
  [[nodiscard]] Status permits(const BoardPlace& place, std::uint64_t offset, Version version) const;

 private:
  const BoardMemory* memory_;
};

// The owner's side.
class Board {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Board>> create();

  void open(const Incarnation& incarnation);
  void close(const Incarnation& incarnation);
  void adopt(Term term);
  void set_oldest(Version oldest);
  void retire(std::uint64_t offset, Version version);

  // Nullopt when it is closed, or there was no place left for it.
  [[nodiscard]] std::optional<BoardPlace> place_of(const Incarnation& incarnation) const;
  [[nodiscard]] std::optional<Incarnation> segment_at(const BoardPlace& place) const;
  [[nodiscard]] int fd() const { return shared_.fd(); }
  [[nodiscard]] BoardView view() const { return BoardView(&memory()); }

 private:
  explicit Board(SharedMemory shared) : shared_(std::move(shared)) {}
  [[nodiscard]] BoardMemory& memory() const { return *reinterpret_cast<BoardMemory*>(shared_.bytes().data()); }
  void clear_bit(std::uint64_t bit);

  SharedMemory shared_;
  mutable std::mutex mutex_;  // guards what follows, and all changes of the memory
  std::unordered_map<Incarnation, BoardPlace> places_;
  std::set<std::pair<Version, std::uint64_t>> retired_;             // (grant, offset), of the current term, not older than the oldest
  std::unordered_map<std::uint64_t, std::uint32_t> grants_of_bit_;  // how many of them share a bit
};

}  // namespace moonpool::transfer
