#include "transfer/shm/write_ring.h"

#include <algorithm>
#include <cstring>

#include "transfer/checksum.h"

namespace moonpool::transfer {

std::uint64_t record_size(std::uint64_t key_length, std::uint64_t extent_length) {
  return checksums_offset(key_length) + chunks_of(extent_length) * sizeof(std::uint64_t);
}

bool WriteRing::fits(const Announcement& extent) { return record_size(extent.key.size(), extent.extent.length) <= kRingHeap / 4; }

void WriteRing::reclaim() {
  while (tail_ < head_ && slot(tail_).state.load(std::memory_order_acquire) == SlotState::kFree) {
    heap_tail_ = heap_ends_[tail_ % kRingSlots];
    ++tail_;
  }
}

bool WriteRing::reserve(std::uint64_t size, std::uint64_t& position) {
  const std::uint64_t place = heap_head_ % kRingHeap;
  position = place + size <= kRingHeap ? heap_head_ : heap_head_ + (kRingHeap - place);  // never around the end
  return position + size - heap_tail_ <= kRingHeap;
}

std::vector<std::uint64_t> WriteRing::announce(std::span<const Announcement> extents) {
  std::vector<std::uint64_t> numbers;
  numbers.reserve(extents.size());
  const std::scoped_lock lock(mutex_);
  reclaim();
  for (const auto& wanted : extents) {
    std::uint64_t position = 0;
    const std::uint64_t size = record_size(wanted.key.size(), wanted.extent.length);
    if (head_ - tail_ == kRingSlots || !reserve(size, position)) break;
    heap_head_ = position + size;
    heap_ends_[head_ % kRingSlots] = heap_head_;
    RingSlot& slot = this->slot(head_);
    slot.board_index = wanted.place.index;
    slot.board_tag = wanted.place.tag;
    slot.offset = wanted.extent.offset;
    slot.length = wanted.extent.length;
    slot.term = wanted.extent.version.term.value;
    slot.count = wanted.extent.version.count;
    slot.heap_offset = static_cast<std::uint32_t>(position % kRingHeap);
    slot.key_length = static_cast<std::uint32_t>(wanted.key.size());
    std::copy_n(reinterpret_cast<const std::byte*>(wanted.key.data()), wanted.key.size(), memory_->heap.data() + slot.heap_offset);
    slot.state.store(SlotState::kWriting, std::memory_order_release);
    numbers.push_back(head_++);
  }
  memory_->head.store(head_);  // sequentially consistent: before the caller looks at the board
  return numbers;
}

bool WriteRing::complete(std::uint64_t number, std::span<const std::uint64_t> chunk_checksums) {
  RingSlot& slot = this->slot(number);
  std::byte* const place = memory_->heap.data() + slot.heap_offset + checksums_offset(slot.key_length);
  std::memcpy(place, chunk_checksums.data(), chunk_checksums.size_bytes());
  auto expected = SlotState::kWriting;
  return slot.state.compare_exchange_strong(expected, SlotState::kComplete);
}

bool WriteRing::leave(std::uint64_t number) { return slot(number).state.exchange(SlotState::kLeft) == SlotState::kCancelled; }

}  // namespace moonpool::transfer
