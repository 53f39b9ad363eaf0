// Host memory that devices reach: segments of the pool, this process's and, once mapped, other processes', pinned once each in the
// background.
//
// want() returns at once; until a thread of ours has made its pages and pinned the region (0.14 s a GiB of touched memory)
// device_address() has no answer and callers go another way. A region that is refused (memlock, the driver's limit) is said once, with the
// limit and the remedy, and not tried again before kTryAgain. A region is unpinned, and its memory let go, when nobody else holds it any
// more: its keeper is a shared_ptr whose use count this thread looks at. Memory from the driver's own allocate_host() needs no entry,
// add_pinned() makes it known.
//
// Threads: any; one thread of its own. Lifetime: the driver outlives it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/deadline.h"
#include "transfer/cuda/driver/driver.h"
#include "transfer/transport.h"

namespace moonpool::transfer::cuda {

class HostRegions {
 public:
  static constexpr std::chrono::seconds kTryAgain{60};

  explicit HostRegions(Driver& driver, std::chrono::milliseconds try_again = kTryAgain);
  ~HostRegions();  // unpins all

  // `keeper` keeps the memory mapped. `name` is for people ("the segment of 10.0.0.2:12345"). Repeating it is cheap and harmless.
  void want(MutableBytes region, std::shared_ptr<const void> keeper, std::string name);
  // Memory that the driver has pinned already, until forget().
  void add_pinned(MutableBytes memory);
  void forget(const std::byte* memory);
  // Where `device` sees `range`, all of which is within one pinned region; nullopt when it is not (yet). The region stays pinned while a
  // Use lives.
  using Use = std::shared_ptr<const void>;
  struct Found {
    std::uint64_t address = 0;
    Use use;
  };
  [[nodiscard]] std::optional<Found> device_address(int device, ConstBytes range);
  // For tests: all that was wanted has been pinned or refused.
  [[nodiscard]] bool wait_settled(Deadline deadline);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer::cuda
