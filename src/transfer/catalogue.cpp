#include "transfer/catalogue.h"

#include <algorithm>
#include <utility>

#include "transfer/checksum.h"
#include "transfer/owner.h"

namespace moonpool::transfer {

namespace {

std::string range_text(std::uint64_t offset, std::uint64_t length) {
  return std::to_string(length) + " bytes at offset " + std::to_string(offset);
}

// Its hook, if it has not been called yet, moves to `aborts`.
void cancel(Extent& extent, std::vector<AbortHook>& aborts) {
  extent.cancelled.store(true, std::memory_order_release);
  if (extent.abort != nullptr) {
    aborts.push_back(std::move(*extent.abort));
    extent.abort.reset();
  }
}

}  // namespace

std::span<const std::uint64_t> Extent::checksums() const {
  return chunk_checksums == nullptr ? std::span(&root, 1) : std::span<const std::uint64_t>(chunk_checksums.get(), chunks_of(length));
}

const Extent* Catalogue::overlapping(const Extents& extents, std::uint64_t offset, std::uint64_t length) {
  const auto after = extents.lower_bound(offset + length);
  if (after == extents.begin()) return nullptr;
  const Extent& last = std::prev(after)->second;
  return last.offset + last.length > offset ? &last : nullptr;
}

const Extent* Catalogue::find(const Extents& extents, std::uint64_t offset, Version version) {
  const auto found = extents.find(offset);
  return found != extents.end() && found->second.version == version ? &found->second : nullptr;
}

Result<Extent*> Catalogue::begin_write(std::uint64_t offset, std::uint64_t length, Version version, AbortHook abort,
                                       std::vector<AbortHook>& displaced) {
  if (length == 0 || offset > segment_size_ || length > segment_size_ - offset) {
    return Status(ErrorCode::kInvalidWrite,
                  range_text(offset, length) + " are not inside the segment of " + std::to_string(segment_size_) + " bytes");
  }
  if (const Extent* const other = overlapping(complete_, offset, length); other != nullptr) {
    if (other->offset == offset && other->length == length && other->version == version) {
      return Status(ErrorCode::kObjectAlreadyExists, "this extent was already written under this grant");
    }
    return Status(ErrorCode::kInvalidWrite,
                  range_text(offset, length) + " overlap a complete extent: " + range_text(other->offset, other->length));
  }
  if (const Extent* const other = overlapping(writing_, offset, length); other != nullptr) {
    if (other->offset == offset && other->length == length && other->version == version) {
      cancel(writing_.at(offset), displaced);
      return Status(ErrorCode::kUnavailable, "an earlier attempt at this write is still leaving: try again");
    }
    return Status(ErrorCode::kInvalidWrite,
                  range_text(offset, length) + " overlap an extent being written: " + range_text(other->offset, other->length));
  }
  if (const Extent* const other = overlapping(leaving_, offset, length); other != nullptr) {
    return Status(ErrorCode::kInvalidWrite, range_text(offset, length) + " overlap a retired extent that is still being read: " +
                                                range_text(other->offset, other->length));
  }
  Extent& extent = writing_[offset];
  extent.offset = offset;
  extent.length = length;
  extent.version = version;
  if (abort) extent.abort = std::make_unique<AbortHook>(std::move(abort));
  return &extent;
}

void Catalogue::abandon_write(const Extent& extent) { writing_.erase(extent.offset); }

void Catalogue::publish(const Extent& written, std::string_view key, std::span<const std::uint64_t> chunk_checksums) {
  auto node = writing_.extract(written.offset);
  Extent& extent = node.mapped();
  extent.key = key;
  extent.root = root_of(chunk_checksums);
  if (chunk_checksums.size() > 1) {
    extent.chunk_checksums = std::make_unique_for_overwrite<std::uint64_t[]>(chunk_checksums.size());
    std::ranges::copy(chunk_checksums, extent.chunk_checksums.get());
  }
  extent.abort.reset();
  bytes_ += extent.length;
  complete_.insert(std::move(node));
}

Result<Extent*> Catalogue::begin_read(std::uint64_t offset, std::uint64_t length, Version version) {
  const auto found = complete_.find(offset);
  if (found == complete_.end() || found->second.version != version) {
    return Status(ErrorCode::kReplicaGone, "the extent at offset " + std::to_string(offset) + " was evicted or replaced");
  }
  Extent& extent = found->second;
  if (length != 0 && length != extent.length) {
    return Status(ErrorCode::kInvalidRead, "the extent at offset " + std::to_string(offset) + " has " + std::to_string(extent.length) +
                                               " bytes, not " + std::to_string(length));
  }
  ++extent.readers;
  ++pins_;
  return &extent;
}

void Catalogue::end_read(Extent& extent) {
  --pins_;
  if (--extent.readers > 0 || !extent.cancelled.load(std::memory_order_relaxed)) return;
  leaving_.erase(extent.offset);
}

void Catalogue::retire(std::uint64_t offset, Version version, std::vector<AbortHook>& aborts) {
  if (find(complete_, offset, version) != nullptr) {
    auto node = complete_.extract(offset);
    bytes_ -= node.mapped().length;
    if (node.mapped().readers == 0) return;
    node.mapped().cancelled.store(true, std::memory_order_release);
    leaving_.insert(std::move(node));
  } else if (find(writing_, offset, version) != nullptr) {
    cancel(writing_.at(offset), aborts);
  }
}

bool Catalogue::present(std::uint64_t offset, Version version) const {
  return find(complete_, offset, version) != nullptr || find(writing_, offset, version) != nullptr ||
         find(leaving_, offset, version) != nullptr;
}

void Catalogue::cancel_writers(const std::function<bool(const Extent&)>& which, std::vector<AbortHook>& aborts) {
  for (auto& [offset, extent] : writing_) {
    if (which(extent)) cancel(extent, aborts);
  }
}

bool Catalogue::has_writer(const std::function<bool(const Extent&)>& which) const {
  return std::ranges::any_of(writing_, [&](const auto& item) { return which(item.second); });
}

std::vector<std::pair<std::uint64_t, std::uint64_t>> Catalogue::read() const {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> all;
  for (const Extents* extents : {&complete_, &leaving_}) {
    for (const auto& [offset, extent] : *extents) {
      if (extent.readers > 0) all.emplace_back(offset, extent.length);
    }
  }
  std::ranges::sort(all);
  return all;
}

std::vector<CatalogueEntry> Catalogue::entries() const {
  std::vector<CatalogueEntry> all;
  all.reserve(complete_.size() + leaving_.size());
  for (const auto& [offset, extent] : complete_) all.push_back({extent.key, offset, extent.length, extent.version, extent.root});
  for (const auto& [offset, extent] : leaving_) all.push_back({{}, offset, extent.length, extent.version, extent.root});
  return all;
}

}  // namespace moonpool::transfer
