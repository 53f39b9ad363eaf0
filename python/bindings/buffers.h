// Memory that crosses the border to Python: values handed out as BufferHandle, replica descriptors, and page-aligned host memory.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "python/bindings/fork_guard.h"
#include "store/client.h"

namespace moonpool::python {

// The bytes of one object, readable through the buffer protocol: pinned in the pool, or a copy. It stays valid after close(), and lets go
// of a pinned object when it ends. Memory views taken from it hold the handle itself; those of a pinned object are read-only, because
// others read the same memory. In a forked child it is abandoned: the pin is the parent's.
class BufferHandle {
 public:
  explicit BufferHandle(store::View view) : view_(std::move(view)) {}
  BufferHandle(BufferHandle&&) = default;
  BufferHandle& operator=(BufferHandle&&) = delete;
  ~BufferHandle() {
    if (generation_ != fork_generation()) static_cast<void>(new store::View(std::move(view_)));
  }
  [[nodiscard]] store::ConstBytes bytes() const { return view_.bytes(); }
  [[nodiscard]] bool read_only() const { return view_.pinned(); }

 private:
  store::View view_;
  std::uint64_t generation_ = fork_generation();
};

// Where the bytes of one replica lie. Only replicas in memory exist in this release.
struct Descriptor {
  std::uint64_t size = 0;
  std::uint64_t buffer_address = 0;
  std::string transport_endpoint;  // "host:port" of the owner
};
struct MemoryDescriptor {
  Descriptor buffer_descriptor;
};
struct DiskDescriptor {
  std::string file_path;
  std::uint64_t object_size = 0;
};
struct ReplicaDescriptor {
  Descriptor buffer;
};

// Page-aligned host memory, mapped apart from the heap. free() of an address that alloc() did not give is refused.
class HostMemory {
 public:
  HostMemory() = default;
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  ~HostMemory();
  // 0 when there is no memory of that size.
  std::uint64_t allocate(std::uint64_t size);
  // 0, or -600 for an address that is not one of ours.
  std::int32_t release(std::uint64_t address);
  [[nodiscard]] bool owns(std::uint64_t address) const;

 private:
  struct Mapping {
    std::uint64_t address;
    std::uint64_t size;
  };
  std::vector<Mapping> mappings_;  // one caller at a time: the interpreter lock, or its owner's
};

void bind_buffers(nanobind::module_& module);

}  // namespace moonpool::python
