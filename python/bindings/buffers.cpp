#include "python/bindings/buffers.h"

#include <nanobind/stl/string.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/logging.h"
#include "base/result.h"
#include "python/bindings/enums.h"

namespace moonpool::python {

namespace nb = nanobind;

namespace {

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto* handle = nb::inst_ptr<BufferHandle>(self);
  const auto bytes = handle->bytes();
  return PyBuffer_FillInfo(view, self, const_cast<std::byte*>(bytes.data()), static_cast<Py_ssize_t>(bytes.size()), handle->read_only(),
                           flags);
}

PyType_Slot buffer_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};

void bind_descriptors(nb::module_& module) {
  nb::class_<Descriptor>(module, "Descriptor", "Where bytes lie: owner, address, size.")
      .def(nb::init<>())
      .def_rw("size", &Descriptor::size, "Bytes.")
      .def_rw("buffer_address", &Descriptor::buffer_address, "Address in the owner's process.")
      .def_rw("transport_endpoint", &Descriptor::transport_endpoint, "'host:port' of the owner.");
  nb::class_<MemoryDescriptor>(module, "MemoryDescriptor").def_ro("buffer_descriptor", &MemoryDescriptor::buffer_descriptor);
  nb::class_<DiskDescriptor>(module, "DiskDescriptor")
      .def_ro("file_path", &DiskDescriptor::file_path)
      .def_ro("object_size", &DiskDescriptor::object_size);
  nb::class_<ReplicaDescriptor>(module, "ReplicaDescriptor", "One complete copy of an object.")
      .def_prop_ro("status", [](const ReplicaDescriptor&) { return ReplicaStatus::kComplete; })
      .def("is_memory_replica", [](const ReplicaDescriptor&) { return true; })
      .def("is_disk_replica", [](const ReplicaDescriptor&) { return false; })
      .def("is_local_disk_replica", [](const ReplicaDescriptor&) { return false; })
      .def("get_memory_descriptor", [](const ReplicaDescriptor& replica) { return MemoryDescriptor{replica.buffer}; })
      .def(
          "get_disk_descriptor",
          [](const ReplicaDescriptor&) -> DiskDescriptor {
            throw nb::value_error("this replica is in memory: use get_memory_descriptor()");
          },
          "Raises ValueError: replicas on disk do not exist in this release.");
}

}  // namespace

HostMemory::~HostMemory() {
  for (const Mapping& mapping : mappings_) munmap(reinterpret_cast<void*>(mapping.address), mapping.size);
}

std::uint64_t HostMemory::allocate(std::uint64_t size) {
  if (size == 0) return 0;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    log::error("MooncakeHostMemAllocator: {} bytes could not be mapped ({}): ask for less, or raise the process's memory limit", size,
               std::strerror(errno));
    return 0;
  }
  mappings_.push_back({reinterpret_cast<std::uint64_t>(memory), size});
  return mappings_.back().address;
}

std::int32_t HostMemory::release(std::uint64_t address) {
  const auto found = std::find_if(mappings_.begin(), mappings_.end(), [&](const Mapping& m) { return m.address == address; });
  if (found == mappings_.end()) return static_cast<std::int32_t>(ErrorCode::kInvalidParams);
  munmap(reinterpret_cast<void*>(found->address), found->size);
  mappings_.erase(found);
  return 0;
}

bool HostMemory::owns(std::uint64_t address) const {
  return std::any_of(mappings_.begin(), mappings_.end(), [&](const Mapping& m) { return m.address == address; });
}

void bind_buffers(nb::module_& module) {
  nb::class_<BufferHandle>(
      module, "BufferHandle", nb::type_slots(buffer_slots),
      "The bytes of one object: a read-only look at the pool's own memory where it is shared with this process, else a copy.\n"
      "Supports the buffer protocol: memoryview(handle), bytes(handle), numpy.frombuffer(handle). Let go of it soon: the pool cannot use "
      "that\n"
      "memory for anything else meanwhile.")
      .def(
          "ptr", [](const BufferHandle& handle) { return reinterpret_cast<std::uint64_t>(handle.bytes().data()); },
          "Address of the first byte.")
      .def(
          "size", [](const BufferHandle& handle) { return handle.bytes().size(); }, "Bytes.")
      .def("__len__", [](const BufferHandle& handle) { return handle.bytes().size(); });
  bind_descriptors(module);
  nb::class_<HostMemory>(module, "MooncakeHostMemAllocator", "Page-aligned host memory; freed with this object at the latest.")
      .def(nb::init<>())
      .def("alloc", &HostMemory::allocate, nb::arg("arg0"), "Bytes to an address, or 0 when there is no memory of that size.")
      .def("free", &HostMemory::release, nb::arg("arg0"), "0, or -600 for an address that alloc() did not give.");
}

}  // namespace moonpool::python
