// What mooncake.engine.TransferEngine does in C++: codes and argument checks over transfer::TransferEngine, and memory that it allocates
// itself.
//
// Codes: 0; -1 for a bad argument, a failed transfer, or a call before initialize(); -3 for memory that is not registered, -7 for memory
// that overlaps a registered range. Why something failed goes to the log, with the peer and what to do. Threads: any. Owns the engine and
// the managed buffers; both live until this object goes.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "python/bindings/arguments.h"
#include "python/bindings/buffers.h"
#include "python/bindings/handle.h"
#include "transfer/rdma/settings.h"
#include "transfer/transfer_engine.h"

namespace moonpool::python {

class Engine {
 public:
  ~Engine();
  // `rdma`: the variables that set options.rdma, read with protocol "rdma" alone.
  std::int32_t initialize(transfer::EngineOptions options, const transfer::rdma::Variables& rdma);
  // Null before initialize(); `call` is the name for the log line, written once.
  [[nodiscard]] std::shared_ptr<transfer::TransferEngine> get(std::string_view call);
  [[nodiscard]] std::shared_ptr<transfer::TransferEngine> get_if_open() const { return handle_.get(); }
  // Stops the engine; for the interpreter's exit.
  void shut_down();

  std::int32_t transfer(std::string_view peer, transfer::Opcode opcode, std::vector<transfer::Piece> pieces,
                        const transfer::Notification* notification);
  // The same, after the work that is queued on a CUDA stream (its handle as a number).
  std::int32_t transfer_on_cuda(std::string_view peer, transfer::Opcode opcode, std::vector<transfer::Piece> pieces, std::uint64_t stream);
  // 0 when it could not be started.
  std::uint64_t submit(std::string_view peer, transfer::Opcode opcode, std::vector<transfer::Piece> pieces);
  // Waits for all. 0, or -1 when one of them failed.
  std::int32_t wait_all(const std::vector<std::uint64_t>& ids);
  // 1 done, 0 pending, -1 failed, -2 timed out.
  std::int32_t check(std::uint64_t id);

  std::uint64_t allocate_managed(std::uint64_t size);
  std::int32_t free_managed(std::uint64_t address);

 private:
  Handle<transfer::TransferEngine> handle_;
  std::atomic<bool> warned_{false};
  std::mutex mutex_;                    // guards what follows
  std::deque<std::uint64_t> answered_;  // finished transfers whose end was told, oldest first: they may be asked for again for a while
  HostMemory managed_;
};

void bind_engine(nanobind::module_& module);

}  // namespace moonpool::python
