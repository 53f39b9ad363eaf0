// The shared memory of one session: where a writer process announces which extents it is copying into, and leaves the key and checksums of
// those that are complete. This file is its layout and the writer's side; the owner's side is in session.h.
//
// A slot goes FREE -> WRITING (announced; then the board is asked, then bytes are copied) -> COMPLETE (the owner takes it into its
// catalogue when it next looks) or LEFT (given up) -> FREE (by the owner). The owner may turn WRITING into CANCELLED; the writer then stops
// and says LEFT. So a put of small objects needs no word with the owner at all, and a writer that dies is known by its session's end.
//
// Slots are used in turn. Keys and checksums lie in a heap used the same way, next to them. Cost: 1.1 MiB per session, touched as it is
// used; a mutex (of the writer's process) per group of extents. Threads: any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "transfer/shm/board.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

inline constexpr std::uint64_t kRingSlots = 1024;
inline constexpr std::uint64_t kRingHeap = std::uint64_t{1} << 20;

enum class SlotState : std::uint32_t { kFree = 0, kWriting = 1, kComplete = 2, kCancelled = 3, kLeft = 4 };

struct alignas(64) RingSlot {
  std::atomic<SlotState> state;
  std::uint32_t board_index;
  std::uint64_t board_tag;
  std::uint64_t offset;
  std::uint64_t length;
  std::uint64_t term;
  std::uint64_t count;
  std::uint32_t heap_offset;  // of the key; the chunk checksums follow it, aligned to 8 bytes
  std::uint32_t key_length;
};
static_assert(sizeof(RingSlot) == 64 && std::atomic<SlotState>::is_always_lock_free);

struct RingMemory {
  alignas(64) std::atomic<std::uint64_t> head;  // slots announced since the start; the slot of number n is n % kRingSlots
  std::array<RingSlot, kRingSlots> slots;
  alignas(64) std::array<std::byte, kRingHeap> heap;
};

// Bytes of heap for a key and its extent's checksums.
[[nodiscard]] std::uint64_t record_size(std::uint64_t key_length, std::uint64_t extent_length);
[[nodiscard]] constexpr std::uint64_t checksums_offset(std::uint64_t key_length) { return (key_length + 7) / 8 * 8; }

class WriteRing {
 public:
  explicit WriteRing(RingMemory* memory) : memory_(memory) {}

  struct Announcement {
    BoardPlace place;
    ExtentRef extent;
    std::string_view key;
  };
  // Announces as many as there is room for, from the front; returns their slots' numbers. None when the ring is full: the owner has to look
  // at it first. The caller asks the board next, and calls complete() or leave() for each.
  [[nodiscard]] std::vector<std::uint64_t> announce(std::span<const Announcement> extents);
  // Whether it can ever be announced.
  [[nodiscard]] static bool fits(const Announcement& extent);

  [[nodiscard]] bool cancelled(std::uint64_t number) const { return slot(number).state.load() == SlotState::kCancelled; }
  // False when the owner was faster; leave() is then still to be called.
  [[nodiscard]] bool complete(std::uint64_t number, std::span<const std::uint64_t> chunk_checksums);
  // The memory is not touched any more. True when the owner waits for that.
  bool leave(std::uint64_t number);

 private:
  [[nodiscard]] RingSlot& slot(std::uint64_t number) const { return memory_->slots[number % kRingSlots]; }
  void reclaim();
  // Where in the heap `size` bytes fit, as a position that only grows; false when they do not.
  [[nodiscard]] bool reserve(std::uint64_t size, std::uint64_t& position);

  RingMemory* const memory_;
  std::mutex mutex_;             // guards what follows
  std::uint64_t head_ = 0;       // as in memory
  std::uint64_t tail_ = 0;       // the oldest slot that the owner has not freed, as far as known
  std::uint64_t heap_head_ = 0;  // positions; the place in the heap is the remainder
  std::uint64_t heap_tail_ = 0;
  std::array<std::uint64_t, kRingSlots> heap_ends_{};  // of each slot's record
};

}  // namespace moonpool::transfer
