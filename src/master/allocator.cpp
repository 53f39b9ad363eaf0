#include "master/allocator.h"

#include <algorithm>
#include <bit>

namespace moonpool::master {

namespace {
constexpr std::uint64_t kSmallestGranule = 256;

std::uint64_t granule_for(std::uint64_t capacity) {
  std::uint64_t granule = kSmallestGranule;
  while (capacity / granule > 0xFFFF'FF00ULL) granule *= 2;
  return granule;
}
}  // namespace

ExtentAllocator::ExtentAllocator(std::uint64_t capacity)
    : granule_(granule_for(capacity)), units_(static_cast<std::uint32_t>(capacity / granule_)) {
  for (auto& list : lists_) list.fill(kNone);
  if (units_ == 0) return;
  const auto whole = new_block(0, units_, kNone, kNone);
  blocks_[whole].free = true;
  list_insert(whole);
}

std::uint64_t ExtentAllocator::rounded(std::uint64_t length) const {
  return (length / granule_ + (length % granule_ != 0 ? 1 : 0)) * granule_;
}

std::size_t ExtentAllocator::index_part(std::uint32_t start) {
  std::uint64_t mixed = (start + 1) * 0xBF58476D1CE4E5B9ULL;
  mixed = (mixed ^ (mixed >> 29)) * 0x94D049BB133111EBULL;
  return mixed >> (64 - kIndexPartBits);
}

ExtentAllocator::Class ExtentAllocator::class_of(std::uint32_t units) {
  if (units < kSecond) return {0, units};
  const auto top = static_cast<unsigned>(std::bit_width(units)) - 1;
  return {top - kSecondBits + 1, (units >> (top - kSecondBits)) & (kSecond - 1)};
}

std::uint32_t ExtentAllocator::first_of_larger_class(std::uint32_t units) const {
  auto [first, second] = class_of(units);
  // Every block of a class above this one is large enough; in the linear classes (and at a class's lower edge) this one's are too.
  const auto top = static_cast<unsigned>(std::bit_width(units)) - 1;
  const bool exact = units < kSecond || (units & ((1U << (top - kSecondBits)) - 1)) == 0;
  if (!exact && ++second == kSecond) {
    second = 0;
    if (++first == kFirst) return kNone;
  }
  if (const auto row = second_bitmap_[first] & (~0ULL << second); row != 0) return lists_[first][std::countr_zero(row)];
  if (first + 1 == kFirst) return kNone;
  const auto rows = first_bitmap_ & (~0U << (first + 1));
  if (rows == 0) return kNone;
  const auto row = static_cast<unsigned>(std::countr_zero(rows));
  return lists_[row][std::countr_zero(second_bitmap_[row])];
}

std::uint32_t ExtentAllocator::scan(std::uint32_t head, std::uint32_t units, int limit) const {
  auto best = kNone;
  auto best_units = ~0U;
  for (auto candidate = head; candidate != kNone && limit > 0; candidate = blocks_[candidate].list_next, --limit) {
    const auto has = blocks_[candidate].units;
    if (has < units || has >= best_units) continue;
    best = candidate;
    best_units = has;
    if (has == units) break;
  }
  return best;
}

std::uint32_t ExtentAllocator::find(std::uint32_t units) const {
  const auto [first, second] = class_of(units);
  const auto own = lists_[first][second];
  if (const auto close = scan(own, units, kScan); close != kNone) return close;
  if (const auto sure = scan(first_of_larger_class(units), units, kScan); sure != kNone) return sure;
  return scan(own, units, kLastScan);
}

std::optional<std::uint64_t> ExtentAllocator::allocate(std::uint64_t length) {
  const auto wanted = rounded(length) / granule_;
  if (wanted == 0 || wanted > units_ - used_units_) return std::nullopt;
  const auto units = static_cast<std::uint32_t>(wanted);
  const auto index = find(units);
  if (index == kNone) return std::nullopt;
  const auto start = blocks_[index].start;
  take(index, start, units);
  return std::uint64_t{start} * granule_;
}

bool ExtentAllocator::allocate_at(std::uint64_t offset, std::uint64_t length) {
  if (sealed_ || length == 0 || offset % granule_ != 0) return false;
  if (offset > capacity() || length > capacity() - offset) return false;
  const auto start = static_cast<std::uint32_t>(offset / granule_);
  const auto units = static_cast<std::uint32_t>(rounded(length) / granule_);
  auto found = free_by_start_.upper_bound(start);
  if (found == free_by_start_.begin()) return false;
  --found;
  const Block& block = blocks_[found->second];
  if (std::uint64_t{block.start} + block.units < std::uint64_t{start} + units) return false;
  take(found->second, start, units);
  return true;
}

void ExtentAllocator::seal() {
  sealed_ = true;
  free_by_start_.clear();
}

void ExtentAllocator::take(std::uint32_t index, std::uint32_t start, std::uint32_t units) {
  list_remove(index);
  const Block whole = blocks_[index];
  if (start > whole.start) {
    const auto left = new_block(whole.start, start - whole.start, whole.before, index);
    blocks_[left].free = true;
    if (whole.before != kNone) blocks_[whole.before].after = left;
    blocks_[index].before = left;
    list_insert(left);
  }
  const auto end = whole.start + whole.units;
  if (start + units < end) {
    const auto right = new_block(start + units, end - start - units, index, whole.after);
    blocks_[right].free = true;
    if (whole.after != kNone) blocks_[whole.after].before = right;
    blocks_[index].after = right;
    list_insert(right);
  }
  Block& block = blocks_[index];
  block.start = start;
  block.units = units;
  block.free = false;
  index_of(start).emplace(start, index);
  ++allocations_;
  used_units_ += units;
}

bool ExtentAllocator::free(std::uint64_t offset) {
  if (offset % granule_ != 0 || offset / granule_ >= units_) return false;
  const auto start = static_cast<std::uint32_t>(offset / granule_);
  auto& table = index_of(start);
  const auto found = table.find(start);
  if (found == table.end()) return false;
  const auto index = found->second;
  table.erase(found);
  --allocations_;
  used_units_ -= blocks_[index].units;
  blocks_[index].free = true;
  if (const auto before = blocks_[index].before; before != kNone && blocks_[before].free) {
    list_remove(before);
    blocks_[index].start = blocks_[before].start;
    blocks_[index].units += blocks_[before].units;
    blocks_[index].before = blocks_[before].before;
    if (blocks_[index].before != kNone) blocks_[blocks_[index].before].after = index;
    drop_block(before);
  }
  if (const auto after = blocks_[index].after; after != kNone && blocks_[after].free) {
    list_remove(after);
    blocks_[index].units += blocks_[after].units;
    blocks_[index].after = blocks_[after].after;
    if (blocks_[index].after != kNone) blocks_[blocks_[index].after].before = index;
    drop_block(after);
  }
  list_insert(index);
  return true;
}

std::uint32_t ExtentAllocator::new_block(std::uint32_t start, std::uint32_t units, std::uint32_t before, std::uint32_t after) {
  std::uint32_t index = 0;
  if (spare_.empty()) {
    index = static_cast<std::uint32_t>(blocks_.size());
    blocks_.emplace_back();
  } else {
    index = spare_.back();
    spare_.pop_back();
  }
  blocks_[index] = Block{.start = start, .units = units, .before = before, .after = after};
  return index;
}

void ExtentAllocator::drop_block(std::uint32_t index) {
  blocks_[index] = Block{};
  spare_.push_back(index);
}

void ExtentAllocator::list_insert(std::uint32_t index) {
  Block& block = blocks_[index];
  const auto [first, second] = class_of(block.units);
  block.list_previous = kNone;
  block.list_next = lists_[first][second];
  if (block.list_next != kNone) blocks_[block.list_next].list_previous = index;
  lists_[first][second] = index;
  second_bitmap_[first] |= 1ULL << second;
  first_bitmap_ |= 1U << first;
  if (!sealed_) free_by_start_.insert_or_assign(block.start, index);
}

void ExtentAllocator::list_remove(std::uint32_t index) {
  Block& block = blocks_[index];
  const auto [first, second] = class_of(block.units);
  if (block.list_previous != kNone) {
    blocks_[block.list_previous].list_next = block.list_next;
  } else {
    lists_[first][second] = block.list_next;
    if (block.list_next == kNone) {
      second_bitmap_[first] &= ~(1ULL << second);
      if (second_bitmap_[first] == 0) first_bitmap_ &= ~(1U << first);
    }
  }
  if (block.list_next != kNone) blocks_[block.list_next].list_previous = block.list_previous;
  block.list_previous = block.list_next = kNone;
  if (!sealed_) free_by_start_.erase(block.start);
}

bool ExtentAllocator::consistent() const {
  if (units_ == 0) return allocations_ == 0 && used_units_ == 0;
  std::size_t listed = 0;
  for (unsigned first = 0; first < kFirst; ++first) {
    if (((first_bitmap_ >> first) & 1U) != (second_bitmap_[first] != 0 ? 1U : 0U)) return false;
    for (unsigned second = 0; second < kSecond; ++second) {
      if (((second_bitmap_[first] >> second) & 1U) != (lists_[first][second] != kNone ? 1U : 0U)) return false;
      for (auto index = lists_[first][second]; index != kNone; index = blocks_[index].list_next, ++listed) {
        const auto in = class_of(blocks_[index].units);
        if (!blocks_[index].free || in.first != first || in.second != second) return false;
      }
    }
  }
  std::vector<bool> spare(blocks_.size(), false);
  for (const auto index : spare_) spare[index] = true;
  std::uint32_t head = kNone;
  for (std::uint32_t i = 0; i < blocks_.size(); ++i) {
    if (!spare[i] && blocks_[i].before == kNone) head = head == kNone ? i : kNone - 1;
  }
  if (head >= blocks_.size()) return false;
  std::uint64_t position = 0;
  std::uint64_t used = 0;
  std::size_t free_count = 0;
  std::size_t used_count = 0;
  bool previous_free = false;
  for (auto index = head; index != kNone; index = blocks_[index].after) {
    const Block& block = blocks_[index];
    if (block.start != position || block.units == 0 || (block.free && previous_free)) return false;
    const auto& table = index_of(block.start);
    const auto entry = table.find(block.start);
    if (block.free != (entry == table.end()) || (!block.free && entry->second != index)) return false;
    if (block.after != kNone && blocks_[block.after].before != index) return false;
    position += block.units;
    used += block.free ? 0 : block.units;
    (block.free ? free_count : used_count) += 1;
    previous_free = block.free;
  }
  return position == units_ && used == used_units_ && free_count == listed && used_count == allocations_;
}

}  // namespace moonpool::master
