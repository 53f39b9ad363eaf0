// A piece of memory that can be handed to another process: a memfd whose size is sealed, so that no peer can pull pages from under a
// mapping (which would be SIGBUS for everybody else).
//
// Cost: a descriptor and a mapping. Threads: a value; what lies in the memory is its users' business. A mapping stays valid for as long as
// the object lives, whatever becomes of the process that made the memory.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "net/unique_fd.h"

namespace moonpool::transfer {

class SharedMemory {
 public:
  enum class Access { kRead, kReadWrite };

  // New memory of zeros, mapped read-write. `name` shows in /proc/PID/maps. kNotSupported naming the step that was refused.
  [[nodiscard]] static Result<SharedMemory> create(const char* name, std::uint64_t size);
  // What a peer has sent. kProtocol unless it is sealed against shrinking and holds at least `size` bytes.
  [[nodiscard]] static Result<SharedMemory> map(net::UniqueFd fd, std::uint64_t size, Access access);

  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  // Processes that get the descriptor from now on can only map it for reading.
  [[nodiscard]] Status seal_for_others();
  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
  [[nodiscard]] int fd() const { return fd_.get(); }
  // The descriptor is of no use to somebody who only keeps the mapping.
  void close_fd() { fd_.reset(); }

 private:
  SharedMemory(net::UniqueFd fd, std::span<std::byte> bytes) : fd_(std::move(fd)), bytes_(bytes) {}

  net::UniqueFd fd_;
  std::span<std::byte> bytes_;
};

}  // namespace moonpool::transfer
