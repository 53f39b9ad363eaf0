// Moves bytes between many pieces of device memory and contiguous pinned memory, all jobs of a call in one launch per device.
//
// The piece table is built in pinned memory and goes to the device in the stream's order, without anybody waiting. The kernel computes the
// checksums in the same pass. A launch of some megabytes goes by way of memory of the device, between which and the host a copy engine
// copies, at the link's full rate in both directions at once (device_staging.h); the kernel of a small one, or where the device has no
// memory left, reaches the host's memory itself. How many multiprocessors a launch takes is bounded (settings.h): the first of a direction
// and staged ones may have all of them, others that overlap what is left, or a quarter. Work is queued on streams of our own, a few per
// device, after all that is queued on the stream that the caller names: by default the legacy default stream, on which PyTorch runs, so
// that bytes that a kernel has yet to write are not read before.
//
// Without kernels in this build, or none for the device, each piece is one asynchronous copy and the host computes the checksums.
//
// Threads: any; a call's Ticket belongs to one. Lifetime: the driver and host regions outlive it; tickets may outlive no Copier.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/cuda/driver/driver.h"
#include "transfer/cuda/host_regions.h"
#include "transfer/cuda/settings.h"
#include "transfer/registered_memory.h"

namespace moonpool::transfer::cuda {

enum class Direction : std::uint8_t { kGather, kScatter };  // pieces to contiguous, and back

struct CopyJob {
  int device = 0;
  std::span<const AddressRange> pieces;  // in this device's memory (or memory that it can reach); of any size, 0 included
  MutableBytes contiguous;               // pinned host memory, or empty when device_address is given; sizes add up to `length`
  std::uint64_t device_address = 0;      // contiguous memory that is not the host's
  std::uint64_t length = 0;
  // Room for one checksum a chunk (chunks_of(length)): filled when the ticket is done. Empty: not wanted. Of contiguous memory that is not
  // the host's only where hashes_what_it_moves(), since the host cannot: kNotSupported where a device turns out to have no kernels.
  std::span<std::uint64_t> checksums;
};

class Copier {
 public:
  // Work in flight.
  class Ticket {
   public:
    ~Ticket();  // waits for the end of it, since memory must not be let go before

   private:
    friend class Copier;
    struct Work;
    explicit Ticket(std::unique_ptr<Work> work);
    std::unique_ptr<Work> work_;
  };

  Copier(Driver& driver, HostRegions& regions, const Settings& settings);
  ~Copier();

  // Queues all jobs. kUnavailable when contiguous memory is not pinned (yet): nothing was queued then. Jobs and what they point to must
  // stay until the ticket is done.
  [[nodiscard]] Result<std::unique_ptr<Ticket>> submit(Direction direction, std::span<const CopyJob> jobs, Stream after);
  // Waits for the end. After the deadline it goes on waiting (a kernel cannot be taken back) and says kRpcTimeout when it is over.
  [[nodiscard]] Status wait(Ticket& ticket, Deadline deadline);
  // Without waiting. An error of the work is the answer once it has ended.
  [[nodiscard]] Result<bool> done(Ticket& ticket);
  // Whether all checksums of a scatter of so many bytes are of what the device has moved, whoever writes the host's memory meanwhile.
  // False: the host computes some from that memory before the device reads it (a last chunk of at most kLeastHashed bytes; all of them
  // without kernels), so that it must not change. `device` is one of this process's. Without kernels, or before the first launch of one, it
  // is false.
  [[nodiscard]] bool hashes_what_it_moves(int device, std::uint64_t length) const;

  // Counted since the start, for tests and status.
  struct Counters {
    std::uint64_t launches = 0;
    std::uint64_t staged = 0;  // launches whose bytes passed through the device's staging memory
    std::uint64_t copies = 0;  // asynchronous copies of pieces, where there is no kernel
    std::uint64_t bytes = 0;
    std::uint64_t host_waits = 0;  // calls that waited for a device, or looked whether they had to
  };
  [[nodiscard]] Counters counters() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer::cuda
