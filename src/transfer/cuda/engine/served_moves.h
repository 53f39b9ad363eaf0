// A transfer engine's requests whose pieces are on a device, served: raw writes and reads by staging, and holds for peers whose own GPU
// does the copy (CUDA IPC).
//
// A write is received into staging memory in windows of at most kWindowBytes, each scattered while the next one arrives, and answered when
// the last byte is on the device. A read is gathered before its answer begins. Pieces in host memory are received straight into place and
// sent straight from it. The staging memory is this side's own ring (Settings::staging_bytes): it is never held while something of a peer's
// is waited for but the bytes of the request itself, so two processes that write to each other cannot block each other.
//
// A hold keeps pieces registered from its request until it is released, or its connection has ended. Scatter, gather and hold come after
// what this process has queued on the default streams (Settings::after_default_stream).
//
// Threads: the server's, which never wait for a device here: a thread of ours for each device does. What a copy in flight touches is kept
// until its end, whatever becomes of the request. Lifetime: outlives the server.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "net/server.h"
#include "transfer/cuda/engine/staged_window.h"
#include "transfer/cuda/runtime.h"
#include "transfer/rdma/job_thread.h"
#include "transfer/registered_memory.h"

namespace moonpool::transfer::cuda {

class ServedMoves {
 public:
  // Peers ask for at most so much device memory at once (EngineMoves::kWindowBytes).
  static constexpr std::uint64_t kWindowBytes = std::uint64_t{4} << 20;
  static constexpr std::size_t kMostHolds = 64;  // of one connection
  using FindRuntime = std::function<Runtime*()>;

  // A raw request whose memory is held.
  struct Admitted {
    RegisteredMemory::Hold hold;
    std::vector<AddressRange> pieces;
    std::uint64_t total = 0;
    bool checksum = false;
  };

  ServedMoves(RegisteredMemory& memory, Incarnation incarnation, FindRuntime find);
  ~ServedMoves();

  // Makes the staging memory ahead, so that no server thread has to. Logs what refuses it: requests will say it again.
  void prepare();
  [[nodiscard]] net::Task<net::Reply> write(net::Request& request, std::shared_ptr<Admitted> admitted);
  [[nodiscard]] net::Task<net::Reply> read(net::Request& request, std::shared_ptr<Admitted> admitted);
  [[nodiscard]] net::Task<net::Reply> hold(net::Request& request);
  [[nodiscard]] net::Reply release(net::Request& request);
  void closed(const net::Session& session);
  // METHOD_DEVICE_HOLD, METHOD_DEVICE_RELEASE and the end of connections.
  void serve(net::Server& server);

  // Refuses new holds and waits for those that are left, so that no peer's GPU touches memory of this process afterwards. Before the
  // server's stop.
  void end_holds(Deadline deadline);
  // After the server's stop: waits for copies in flight.
  void stop();

 private:
  struct Lent;
  struct Move;

  Staging& staging(Runtime& runtime);
  net::Task<Status> lend(Runtime& runtime, std::uint64_t size, std::shared_ptr<Lent> into, Deadline deadline);
  Status start(Runtime& runtime, Direction direction, const std::shared_ptr<Move>& move);
  static net::Task<Status> finished(std::shared_ptr<Move> move, Deadline deadline);
  net::Task<Status> receive(Runtime& runtime, net::Request& request, std::shared_ptr<Admitted> admitted);
  net::Task<Status> after_queued_work(Runtime& runtime, std::vector<int> devices, Deadline deadline);
  rdma::JobThread& thread_of(int device);
  Result<std::uint64_t> keep(const net::Session& session, RegisteredMemory::Hold hold);

  RegisteredMemory& memory_;
  const Incarnation incarnation_;
  const FindRuntime find_;
  const std::shared_ptr<net::AsyncEvent> given_back_;  // some staging memory
  std::mutex mutex_;                                   // guards what follows
  std::condition_variable released_;
  bool ending_ = false;
  std::unique_ptr<Staging> staging_;                         // made by the first request
  std::map<int, std::unique_ptr<rdma::JobThread>> waiters_;  // by device
  std::uint64_t last_hold_ = 0;
  std::unordered_map<const net::Session*, std::map<std::uint64_t, RegisteredMemory::Hold>> holds_;
};

}  // namespace moonpool::transfer::cuda
