// The extents of one segment: those that are complete (the catalogue proper), those being written, and those retired while a reader or
// writer still touches their memory. No two of them overlap, whatever their state, so bytes have one writer or any number of readers.
//
// Cost: one tree node per extent (about 150 bytes and the key); the checksums of extents longer than a chunk beside it. A tree rather than
// a hash map, because a write has to be refused when it overlaps any extent, not only one of the same offset. Nodes move between the states
// without allocation and keep their address, so a pin is a pointer. Threads: none of its own; the segment's mutex guards it, except where a
// member says otherwise.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace moonpool::transfer {

struct CatalogueEntry;

using AbortHook = std::function<void()>;

struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  Version version;
  std::string key;
  std::uint64_t root = 0;
  std::unique_ptr<std::uint64_t[]> chunk_checksums;  // of extents of several chunks; a single chunk's is the root
  std::uint32_t readers = 0;
  std::atomic<bool> cancelled{false};  // its grant or segment has gone: writers stop. Read without the mutex.
  std::unique_ptr<AbortHook> abort;    // of the writer, until it was called or the write has ended

  [[nodiscard]] std::span<const std::uint64_t> checksums() const;
};

class Catalogue {
 public:
  explicit Catalogue(std::uint64_t segment_size) : segment_size_(segment_size) {}

  // Admits a writer. kInvalidWrite: outside the segment, or overlapping another extent. kObjectAlreadyExists: this very put is complete
  // here. kUnavailable: this very write is still under way on another connection (its caller gave up and tries again): `displaced` receives
  // that writer's abort hook, and the caller tries again once it has left.
  [[nodiscard]] Result<Extent*> begin_write(std::uint64_t offset, std::uint64_t length, Version version, AbortHook abort,
                                            std::vector<AbortHook>& displaced);
  // The writer has left without publishing.
  void abandon_write(const Extent& extent);
  // The checksums' number is chunks_of(extent.length).
  void publish(const Extent& extent, std::string_view key, std::span<const std::uint64_t> chunk_checksums);

  // Pins a complete extent. kReplicaGone when there is none of this version; kInvalidRead when its length is another. Length 0: any.
  [[nodiscard]] Result<Extent*> begin_read(std::uint64_t offset, std::uint64_t length, Version version);
  void end_read(Extent& extent);

  // Takes the extent out of the catalogue, or cancels its writer.
  void retire(std::uint64_t offset, Version version, std::vector<AbortHook>& aborts);
  // Whether the extent of this version is still complete here, or its memory still touched by its writer or a reader.
  [[nodiscard]] bool present(std::uint64_t offset, Version version) const;
  // Nobody finds the extent any more, and only readers hold up its space.
  [[nodiscard]] bool withdrawn(std::uint64_t offset, Version version) const { return find(leaving_, offset, version) != nullptr; }
  // Cancels the writers that `which` is true for.
  void cancel_writers(const std::function<bool(const Extent&)>& which, std::vector<AbortHook>& aborts);
  [[nodiscard]] bool has_writer(const std::function<bool(const Extent&)>& which) const;
  [[nodiscard]] bool has_writers() const { return !writing_.empty(); }
  // Nobody writes or reads.
  [[nodiscard]] bool idle() const { return writing_.empty() && leaving_.empty() && pins_ == 0; }

  // The complete extents, and, without a key, those that are only held up by readers.
  [[nodiscard]] std::vector<CatalogueEntry> entries() const;
  // Offset and length of every extent that somebody reads, ordered.
  [[nodiscard]] std::vector<std::pair<std::uint64_t, std::uint64_t>> read() const;
  [[nodiscard]] std::uint64_t extents() const { return complete_.size(); }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  using Extents = std::map<std::uint64_t, Extent>;  // by offset
  static const Extent* overlapping(const Extents& extents, std::uint64_t offset, std::uint64_t length);
  static const Extent* find(const Extents& extents, std::uint64_t offset, Version version);

  std::uint64_t segment_size_;
  std::uint64_t bytes_ = 0;  // in complete_
  std::uint64_t pins_ = 0;   // of readers
  Extents complete_;
  Extents writing_;
  Extents leaving_;  // retired, with readers
};

}  // namespace moonpool::transfer
