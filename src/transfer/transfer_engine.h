// TransferEngine: moves bytes between registered memories of processes; knows nothing of objects or masters (the Python class
// mooncake.engine.TransferEngine and the C++ API underneath it).
//
// A process initialises it with its own name, registers memory, and reads or writes the registered memory of a peer by address. Peers
// are found through the metadata server under "moonpool/segment/<name>" (an EngineDescriptor), or, with "P2PHANDSHAKE", by asking the peer
// at host:port itself. A request to an address outside what the peer registered is refused before any byte moves.
//
// Memory may be on a CUDA device, on either side (cuda/engine_moves.h).
//
// With protocol "rdma" transfers are one-sided (rdma/raw_path.h): unregistering memory ends peers' access to it at once, and a notification
// comes after the bytes. What RDMA cannot do for the path's sake goes over TCP, unless `paths` forbids it; the log says so for each peer.
//
// Threads: all methods from any thread; a synchronous transfer works on the caller's thread; asynchronous ones on a small pool
// owned by the engine. Lifetime: registered memory must outlive its registration; the destructor stops the server and joins the threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/opcode.h"
#include "transfer/rdma/options.h"

namespace moonpool::transfer {

namespace rdma {
class Devices;
struct Counters;
}  // namespace rdma
namespace cuda {
class Runtime;
enum class Stream : std::uintptr_t;
struct MoveCounters;
}  // namespace cuda

struct EngineOptions {
  std::string name;              // "host" or "host:port" by which peers find this engine; the server binds to the host part
  std::string metadata_url;      // any form of metadata_url.h, or "P2PHANDSHAKE"
  std::string protocol = "tcp";  // or "rdma"
  rdma::Options rdma;            // used with protocol "rdma"
  std::string paths;             // with "rdma": without "tcp" in this list TCP does not take over; empty: it does
  std::string cluster_token;
  std::chrono::milliseconds timeout{30000};  // of one transfer
};

// A network card that this engine uses.
struct NicPlace {
  std::string name;
  std::int32_t numa_node = -1;
};

struct Notification {
  std::string name;
  std::string message;
};

enum class TransferState : std::uint8_t { kPending, kDone, kFailed, kTimedOut };

class TransferEngine {
 public:
  // The NICs of protocol "rdma": by default this host's (rdma::Devices::open). Tests have simulated ones.
  using OpenDevices = std::function<Result<std::shared_ptr<rdma::Devices>>(const rdma::Options& options)>;

  // CUDA: by default this process's (cuda::Runtime::of_process). Tests have fake ones. Asked each time memory is registered or moved.
  using FindCuda = std::function<cuda::Runtime*()>;

  [[nodiscard]] static Result<std::unique_ptr<TransferEngine>> create(EngineOptions options, const OpenDevices& open_devices = {},
                                                                      FindCuda find_cuda = {});
  ~TransferEngine();

  // "host:port" under which peers reach this engine (its session id), and that port.
  [[nodiscard]] std::string session() const;
  [[nodiscard]] std::uint16_t port() const;

  // kInvalidParams for null or empty ranges, kSegmentAlreadyExists for an overlap with a registered range; with "rdma" also kUnavailable
  // when no NIC can register it (memlock). Device memory is recognised; "*" as its location becomes "cuda:N".
  Status register_memory(std::uint64_t address, std::uint64_t length, std::string_view location = "*");
  Status unregister_memory(std::uint64_t address);

  // Moves all pieces; returns when they have arrived. Errors name the peer, the operation and the remedy.
  Status transfer(std::string_view peer, Opcode opcode, const std::vector<Piece>& pieces, const Notification* notify = nullptr);
  // The same, after the work that is queued on this stream has ended; kNotSupported without CUDA. Transfers of device memory come after
  // what is queued on its device's default stream otherwise.
  Status transfer_after(cuda::Stream stream, std::string_view peer, Opcode opcode, const std::vector<Piece>& pieces);
  // As transfer(), in the background. The id is never 0.
  [[nodiscard]] Result<std::uint64_t> submit(std::string_view peer, Opcode opcode, std::vector<Piece> pieces);
  // kInvalidParams for an id never given; a finished transfer may be asked for again until `forget`.
  [[nodiscard]] Result<TransferState> state(std::uint64_t id) const;
  // Waits for the end of the transfer and forgets it. Its error when it failed.
  Status wait(std::uint64_t id);
  void forget(std::uint64_t id);

  // The address of the peer's first registered range.
  [[nodiscard]] Result<std::uint64_t> first_buffer(std::string_view peer);
  Status probe(std::string_view peer);
  Status notify(std::string_view peer, const Notification& notification);
  [[nodiscard]] std::vector<Notification> take_notifications();

  // Empty with protocol "tcp".
  [[nodiscard]] std::vector<NicPlace> nics() const;
  // Null with protocol "tcp".
  [[nodiscard]] const rdma::Counters* rdma_counters() const;
  [[nodiscard]] const cuda::MoveCounters& device_counters() const;

 private:
  class Impl;
  explicit TransferEngine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer
