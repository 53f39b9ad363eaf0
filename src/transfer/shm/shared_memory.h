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
  // The same in the host's huge pages, the size rounded up to them, all of them there when it returns: reserved ones that a limit of the
  // container forbids would be a SIGBUS at their first touch. kNotSupported when the host has not reserved enough, or rounding would waste
  // more than an eighth.
  [[nodiscard]] static Result<SharedMemory> create_huge(const char* name, std::uint64_t size);
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
  // Bytes of one of its pages.
  [[nodiscard]] std::size_t page() const { return page_; }
  // The descriptor is of no use to somebody who only keeps the mapping.
  void close_fd() { fd_.reset(); }

 private:
  SharedMemory(net::UniqueFd fd, std::span<std::byte> bytes, std::size_t page) : fd_(std::move(fd)), bytes_(bytes), page_(page) {}
  static Result<SharedMemory> create(net::UniqueFd fd, std::uint64_t size);

  net::UniqueFd fd_;
  std::span<std::byte> bytes_;
  std::size_t page_ = 0;
};

}  // namespace moonpool::transfer
