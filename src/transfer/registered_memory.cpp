#include "transfer/registered_memory.h"

#include <algorithm>
#include <utility>

namespace moonpool::transfer {

namespace {

std::string text_of(const AddressRange& range) {
  char text[64];
  std::snprintf(text, sizeof text, "%llu bytes at 0x%llx", static_cast<unsigned long long>(range.length),
                static_cast<unsigned long long>(range.address));
  return text;
}

}  // namespace

RegisteredMemory::Hold& RegisteredMemory::Hold::operator=(Hold&& other) noexcept {
  if (this != &other) {
    release();
    memory_ = other.memory_;
    regions_ = std::exchange(other.regions_, {});
    of_pieces_ = std::exchange(other.of_pieces_, {});
  }
  return *this;
}

void RegisteredMemory::Hold::release() {
  if (regions_.empty()) return;
  {
    const std::scoped_lock lock(memory_->mutex_);
    for (const auto& region : regions_) --region->holds;
  }
  regions_.clear();
  of_pieces_.clear();
  memory_->released_.notify_all();
}

Status RegisteredMemory::add(std::uint64_t address, std::uint64_t length, std::string_view location,
                             std::shared_ptr<const DevicePlace> place) {
  if (address == 0 || length == 0 || address + length < address) {
    return {ErrorCode::kInvalidParams, "cannot register " + text_of({address, length}) + ": give an address and a length that are not 0"};
  }
  const std::scoped_lock lock(mutex_);
  const auto after = regions_.lower_bound(address + length);
  if (after != regions_.begin()) {
    const auto& last = *std::prev(after)->second;
    if (last.address + last.length > address) {
      return {ErrorCode::kSegmentAlreadyExists, "cannot register " + text_of({address, length}) + ": it overlaps " +
                                                    text_of({last.address, last.length}) + ", which is registered"};
    }
  }
  if (place != nullptr) ++on_devices_;
  regions_.emplace(address, std::make_shared<Region>(Region{address, length, std::string(location), registered_++, 0, std::move(place)}));
  return {};
}

Status RegisteredMemory::remove(std::uint64_t address, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto found = regions_.find(address);
  if (found == regions_.end()) {
    return {ErrorCode::kInvalidParams,
            "no registered range begins at address " + std::to_string(address) + ": unregister what was registered"};
  }
  const auto region = found->second;
  regions_.erase(found);
  if (region->place != nullptr) --on_devices_;
  if (released_.wait_until(lock, deadline.time(), [&] { return region->holds == 0; })) return {};
  return {ErrorCode::kRpcTimeout, text_of({region->address, region->length}) +
                                      " are not registered any more, but a transfer that began before still "
                                      "touches them: keep the memory until it has ended"};
}

std::shared_ptr<RegisteredMemory::Region> RegisteredMemory::region_of(const AddressRange& piece) const {
  const auto after = regions_.upper_bound(piece.address);
  if (after == regions_.begin()) return nullptr;
  const auto& region = std::prev(after)->second;
  const std::uint64_t offset = piece.address - region->address;
  const bool inside = offset <= region->length && piece.length <= region->length - offset;
  return inside ? region : nullptr;
}

Result<RegisteredMemory::Hold> RegisteredMemory::hold(std::span<const AddressRange> pieces) {
  std::vector<std::shared_ptr<Region>> regions;
  std::vector<const Region*> of_pieces;
  bool with_devices = false;
  const std::scoped_lock lock(mutex_);
  if (on_devices_ > 0) of_pieces.reserve(pieces.size());
  for (const auto& piece : pieces) {
    auto region = piece.length == 0 ? nullptr : region_of(piece);
    if (region == nullptr && piece.length > 0)
      return Status(ErrorCode::kInvalidParams, text_of(piece) + " are not inside registered memory: register them first");
    if (on_devices_ > 0) of_pieces.push_back(region.get());
    if (region == nullptr) continue;
    with_devices = with_devices || region->place != nullptr;
    if (regions.empty() || regions.back() != region) regions.push_back(std::move(region));
  }
  for (const auto& region : regions) ++region->holds;
  Hold hold;
  hold.memory_ = this;
  hold.regions_ = std::move(regions);
  if (with_devices) hold.of_pieces_ = std::move(of_pieces);
  return hold;
}

bool RegisteredMemory::is_on_device(std::uint64_t address) const {
  const std::scoped_lock lock(mutex_);
  const auto found = regions_.find(address);
  return found != regions_.end() && found->second->place != nullptr;
}

std::vector<RegisteredMemory::Region> RegisteredMemory::regions() const {
  std::vector<Region> list;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& [address, region] : regions_) list.push_back(*region);
  }
  std::ranges::sort(list, {}, &Region::order);
  return list;
}

}  // namespace moonpool::transfer
