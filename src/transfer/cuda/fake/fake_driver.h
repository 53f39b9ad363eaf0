// Devices that are host memory, for tests on machines without a GPU: the same contract, ordering and errors as driver.h, with faults on
// command.
//
// Device memory is reserved address space that the host cannot touch (a test that reads a device pointer as host memory dies, as it would
// with a GPU); the fake reaches it by a second mapping. A stream is a queue with a thread of its own: work runs later than its call, in the
// stream's order, and events join streams. Launches run the kernels' own source on host threads (kernels/emulation.h). Pinned memory is a
// table of ranges; a launch or asynchronous copy that touches host memory outside of it is an error of that stream, as an illegal address
// is. What driver.h's copy() does slowly, with memory that is not pinned, is an error here. Threads: any.
//
// An error of work ends its stream: later calls on it are accepted, their work is skipped, and done() of every event behind it, here and in
// streams that wait for such an event, tells the error. A new stream is sound. (A GPU's context ends as a whole, and any call may say so;
// here done() alone does, so that tests are not a matter of timing.) Freeing or closing what is not there aborts.
#pragma once

#include <chrono>
#include <memory>

#include "transfer/cuda/driver/driver.h"

namespace moonpool::transfer::cuda {

struct FakeOptions {
  int devices = 2;
  std::uint64_t device_bytes = std::uint64_t{256} << 20;  // memory of each
  std::uint64_t pinned_bytes = ~std::uint64_t{0};         // register_host() and allocate_host() refuse what goes beyond
  bool kernels = true;                                    // false: launch() is kNotSupported, as in a build without nvcc
  bool peer_access = true;
  bool dma_buf = true;      // false: NICs cannot reach its memory
  int multiprocessors = 4;  // of each, as facts() tells
};

class FakeDriver : public Driver {
 public:
  [[nodiscard]] static std::unique_ptr<FakeDriver> create(const FakeOptions& options = {});
  // Another process's view of the same devices: what one exports, the other opens. Shares the memory, not the pinned ranges or streams.
  [[nodiscard]] virtual std::unique_ptr<FakeDriver> another_process() = 0;

  // Reading and writing device memory past all streams, for tests.
  virtual void peek(std::uint64_t device_address, std::span<std::byte> to) = 0;
  virtual void poke(std::uint64_t device_address, std::span<const std::byte> from) = 0;

  // Faults. The n-th next call of a function by its name in driver.h ("register_host") fails with this status; or its work fails when it
  // runs ("launch", "copy", with late = true), which done() tells.
  virtual void fail(std::string_view function, Status status, int skip = 0, bool late = false) = 0;
  // Streams start no work until released: for tests of order and of deadlines. Work queued before ends first.
  virtual void hold_streams() = 0;
  virtual void release_streams() = 0;

  struct Counts {
    std::uint64_t launches = 0, copies = 0, registered = 0, unregistered = 0, allocations = 0, frees = 0, locates = 0;
    std::uint64_t pinned_bytes = 0;      // now
    std::uint64_t live_handles = 0;      // streams and events now
    std::uint64_t touched_unpinned = 0;  // errors of that kind
    std::uint32_t last_blocks = 0;       // of the latest launch
  };
  [[nodiscard]] virtual Counts counts() const = 0;
};

}  // namespace moonpool::transfer::cuda
