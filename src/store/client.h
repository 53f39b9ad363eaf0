// The client of the pool: what an engine's worker process holds. Lends a segment, puts and gets objects.
//
// put = PutStart at the master, write to the owners (best path per peer), PutCommit. get = GetReplicas, read from a replica, verify, try
// the next replica on failure, else a miss. A master that restarts, a grant that went stale, an owner that was fenced in mid-put: the call
// starts over within its deadline, so callers see either the result or one error that names the peer, the operation and the time.
//
// A background thread (membership.h) keeps the node registered: heartbeats, retirements, re-registration after the master was away, the
// segments mounted. Data paths run on the caller's thread.
//
// Results per key: 0 or a negative ErrorCode number as Python callers expect; sizes for gets. Every batch call returns one entry per key,
// duplicates included. Threads: all methods from any thread; close() waits for calls in flight. Lifetime: registered buffers must outlive
// their use. Pieces of puts and gets may be in the memory of CUDA devices (transfer/cuda/paths/device_paths.h); work on the legacy default
// stream that was queued before the call has ended before they are touched.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/rdma/options.h"
#include "transfer/transport.h"

namespace moonpool::store {

using transfer::ConstBytes;
using transfer::MutableBytes;

struct ClientOptions {
  std::string local_hostname;           // "host", "host:port", "[v6]:port"; without a port the first free one in 12300-14300 is taken
  std::string metadata_server;          // any form of the guide, "P2PHANDSHAKE", or empty (nothing is published then)
  std::string master_address;           // "host:port", or several separated by commas
  std::uint64_t segment_size = 0;       // lent to the pool; 0: lends nothing
  std::uint64_t local_buffer_size = 0;  // staging for get() into fresh memory; 0: a pure server, whose puts fail
  std::string protocol = "tcp";         // or "rdma"
  transfer::rdma::Options rdma;         // used with protocol "rdma"
  std::string tenant = "default";
  std::string cluster_token;
  bool checksums = true;
  std::string paths;                                   // those that data may take, of "local,shm,rdma,tcp"; empty: all
  std::chrono::milliseconds operation_timeout{10000};  // of one put/get/exist/remove call, whatever its batch size
  std::chrono::milliseconds setup_timeout{10000};
  std::chrono::milliseconds handover_wait{500};  // upper bound of exist()'s wait for blocks on their way; 0: never
};

struct ReplicaPolicy {
  std::uint32_t replica_num = 1;
  std::vector<std::string> preferred_segments;
  bool prefer_same_node = false;
  bool soft_pin = false;
  std::chrono::milliseconds soft_pin_ttl{0};
  bool hard_pin = false;
  std::vector<std::string> groups;  // per key, or empty
  std::uint32_t data_type = 0;
};

struct Replica {
  std::string segment_name;  // "host:port" of the owner
  std::uint64_t address = 0;
  std::uint64_t size = 0;
};

// The bytes of an object for reading: pinned where they lie in the pool, or a copy in memory of its own. Valid while it lives, whatever
// becomes of the client, the object, and the owner's process. A pinned object cannot be overwritten or its space reused, so let go of views
// soon.
class View {
 public:
  View() = default;
  explicit View(std::vector<std::byte> copy) : copy_(std::move(copy)), bytes_(copy_) {}
  View(ConstBytes bytes, std::shared_ptr<const void> pin) : bytes_(bytes), pin_(std::move(pin)) {}
  View(View&&) = default;  // a moved vector keeps its memory
  View& operator=(View&&) = default;

  [[nodiscard]] ConstBytes bytes() const { return bytes_; }
  [[nodiscard]] bool pinned() const { return pin_ != nullptr; }

 private:
  std::vector<std::byte> copy_;
  ConstBytes bytes_;
  std::shared_ptr<const void> pin_;
};

// A range of an object into (or from) the caller's memory.
struct RangeRead {
  std::string_view key;
  std::vector<MutableBytes> destination;
  std::vector<std::uint64_t> source_offsets;  // one per destination
};

class PartPipeline;

class Client {
 public:
  // Registers with the master, mounts the segment, publishes it in the metadata server. Every failure names what could not be reached.
  [[nodiscard]] static Result<std::unique_ptr<Client>> create(ClientOptions options);
  // Unmounts, deregisters, waits for calls in flight (bounded).
  ~Client();
  void close();

  // The pieces of value i are sources[i]; an empty value or key is kInvalidParams. 0 also when the key was committed already.
  std::vector<std::int32_t> put(std::span<const std::string_view> keys, std::span<const std::span<const ConstBytes>> sources,
                                const ReplicaPolicy& policy = {});
  // As put, but replaces a committed value; the old one stays readable until the new one is committed.
  std::vector<std::int32_t> upsert(std::span<const std::string_view> keys, std::span<const std::span<const ConstBytes>> sources,
                                   const ReplicaPolicy& policy = {});

  // The object must fit: its size is compared with the sum of the destination's sizes. exact: must be equal, else kInvalidParams;
  // otherwise the destination may be larger. Returns bytes read or a negative code, per key.
  std::vector<std::int64_t> get_into(std::span<const std::string_view> keys, std::span<const std::span<const MutableBytes>> destinations,
                                     bool exact);
  // Bytes read in all ranges of the entry, or a negative code, per entry.
  std::vector<std::int64_t> get_ranges(std::span<const RangeRead> reads);
  // Whole values into fresh memory. A miss is kObjectNotFound.
  std::vector<Result<std::vector<std::byte>>> get(std::span<const std::string_view> keys);

  // Whole values, without a copy where the owner is this process or shares memory with it, and the object is worth a pin. Codes as get().
  std::vector<Result<View>> view(std::span<const std::string_view> keys);

  // 1, 0, or negative only when the master could not answer. Waits at most options.handover_wait for keys on their way.
  std::vector<std::int32_t> exist(std::span<const std::string_view> keys);
  [[nodiscard]] std::vector<Result<std::uint64_t>> sizes(std::span<const std::string_view> keys);
  [[nodiscard]] std::vector<Result<std::vector<Replica>>> replicas(std::span<const std::string_view> keys);
  std::vector<std::int32_t> remove(std::span<const std::string_view> keys, bool force);
  [[nodiscard]] Result<std::uint64_t> remove_matching(std::string_view regex, bool force);
  [[nodiscard]] Result<std::uint64_t> remove_all(bool force);

  // Memory that gets and puts will use again and again: the host's or a CUDA device's. kInvalidParams for what is neither, saying what is
  // missing. For tcp this only checks the range. With protocol "rdma" host memory is registered on the NICs, so that nothing is copied:
  // kUnavailable with the reason when they refuse it (memlock), kSegmentAlreadyExists for an overlap, and a range is unregistered when no
  // transfer touches it any more (kRpcTimeout: one did not end in time). Where device memory lies is remembered, and the segments of this
  // node are pinned for devices, in the background.
  Status register_buffer(const void* address, std::uint64_t size);
  Status unregister_buffer(const void* address);

  // For callers that split a large batch of device memory into parts, each a put or get of its own.
  [[nodiscard]] PartPipeline& pipeline();

  [[nodiscard]] std::string hostname() const;  // "host:port" as others see it
  Status ping();                               // the master answers

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::store
