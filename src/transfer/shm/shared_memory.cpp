#include "transfer/shm/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace moonpool::transfer {

namespace {

Status refused(const char* step) {
  const int error = errno;
  return {ErrorCode::kNotSupported, std::string("shared memory: ") + step + " was refused: " + std::strerror(error)};
}

}  // namespace

Result<SharedMemory> SharedMemory::create(const char* name, std::uint64_t size) {
  net::UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return refused("memfd_create");
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return refused("ftruncate");
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return refused("sealing");
  void* const address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return refused("mmap");
  return SharedMemory(std::move(fd), {static_cast<std::byte*>(address), size});
}

Result<SharedMemory> SharedMemory::map(net::UniqueFd fd, std::uint64_t size, Access access) {
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  struct stat about {};
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || ::fstat(fd.get(), &about) != 0 || size == 0 ||
      static_cast<std::uint64_t>(about.st_size) < size) {
    return Status(ErrorCode::kProtocol, "shared memory: what the peer sent is not sealed memory of " + std::to_string(size) + " bytes");
  }
  const int protection = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* const address = ::mmap(nullptr, size, protection, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return refused("mmap");
  return SharedMemory(std::move(fd), {static_cast<std::byte*>(address), size});
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept : fd_(std::move(other.fd_)), bytes_(std::exchange(other.bytes_, {})) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
}

Status SharedMemory::seal_for_others() {
  return ::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0 ? Status() : refused("sealing against writes");
}

}  // namespace moonpool::transfer
