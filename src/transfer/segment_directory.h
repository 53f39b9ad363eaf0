// Where the registered memory of other engines is: by name, from the metadata store or from the engine itself.
//
// With a store, a name is looked up under "moonpool/segment/<name>"; without one (P2PHANDSHAKE) a name is "host:port" and the engine there
// is asked. Answers are kept until forget(): callers forget a name when what it says turned out wrong, and look again. Threads: any. Store
// and lanes must outlive it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "metadata/metadata_store.h"
#include "net/lane_pool.h"
#include "transfer/registered_memory.h"

namespace moonpool::transfer {

inline constexpr std::string_view kSegmentKeyPrefix = "moonpool/segment/";

// A range that a peer has registered.
struct RemoteRange {
  std::uint64_t address = 0;
  std::uint64_t length = 0;
  std::size_t order = 0;             // of registration
  std::uint64_t registration = 0;    // the peer's number for it, of device memory
  std::optional<DevicePlace> place;  // nullopt: host memory; the device's number means nothing here
};

struct RemoteSegment {
  Incarnation incarnation;
  net::Endpoint endpoint;
  std::vector<AddressRange> ranges;  // in the order of registration

  // The range that all of a piece is inside of; null: there is none.
  [[nodiscard]] const RemoteRange* range_of(const AddressRange& piece) const;
  std::map<std::uint64_t, RemoteRange> by_address;
  bool has_devices = false;             // some of them are device memory
  std::string cuda_host, cuda_process;  // proto/wire.proto
};

// kProtocol when the descriptor makes no sense; `peer` is named in the error.
[[nodiscard]] Result<RemoteSegment> parse_descriptor(const wire::EngineDescriptor& descriptor, std::string_view peer);

class SegmentDirectory {
 public:
  // Without a store, peers are asked themselves.
  SegmentDirectory(metadata::MetadataStore* store, net::LanePool& lanes) : store_(store), lanes_(lanes) {}

  // kSegmentNotFound when nobody published that name.
  [[nodiscard]] Result<std::shared_ptr<const RemoteSegment>> find(std::string_view peer, Deadline deadline);
  void forget(std::string_view peer);

 private:
  Result<wire::EngineDescriptor> look_up(const std::string& peer, Deadline deadline);
  Result<wire::EngineDescriptor> ask(const std::string& peer, Deadline deadline);

  metadata::MetadataStore* const store_;
  net::LanePool& lanes_;
  std::mutex mutex_;  // guards known_; not held while a store or peer is asked
  std::map<std::string, std::shared_ptr<const RemoteSegment>, std::less<>> known_;
};

}  // namespace moonpool::transfer
