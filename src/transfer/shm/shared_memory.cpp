#include "transfer/shm/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MFD_HUGETLB
#define MFD_HUGETLB 0x0004U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace moonpool::transfer {

namespace {

Status refused(const char* step) {
  const int error = errno;
  return {ErrorCode::kNotSupported, std::string("shared memory: ") + step + " was refused: " + std::strerror(error)};
}

// Not by st_blksize: tmpfs tells the size of a transparent huge page there, where those are allowed.
std::size_t page_of(int fd) {
  constexpr decltype(statfs::f_type) kHugeTlbFs = 0x958458f6;
  struct statfs about {};
  const bool huge = ::fstatfs(fd, &about) == 0 && about.f_type == kHugeTlbFs;
  return static_cast<std::size_t>(huge ? about.f_bsize : ::sysconf(_SC_PAGESIZE));
}

}  // namespace

Result<SharedMemory> SharedMemory::create(net::UniqueFd fd, std::uint64_t size) {
  const std::size_t page = page_of(fd.get());
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return refused("ftruncate");
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return refused("sealing");
  void* const address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return refused("mmap");
  return SharedMemory(std::move(fd), {static_cast<std::byte*>(address), size}, page);
}

Result<SharedMemory> SharedMemory::create(const char* name, std::uint64_t size) {
  net::UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return refused("memfd_create");
  return create(std::move(fd), size);
}

Result<SharedMemory> SharedMemory::create_huge(const char* name, std::uint64_t size) {
  net::UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
  if (!fd) return refused("memfd_create with huge pages");
  const std::uint64_t page = page_of(fd.get());
  const std::uint64_t rounded = (size + page - 1) / page * page;
  if (rounded < size || rounded - size > size / 8) {
    return Status(ErrorCode::kNotSupported, "shared memory: " + std::to_string(size) + " bytes are too few for huge pages");
  }
  auto memory = create(std::move(fd), rounded);  // mmap takes the pages out of the host's reserve, or fails
  if (!memory.ok()) return memory;
  // The destructor of what is given up gives the pages back.
  if (::madvise(memory->bytes().data(), rounded, MADV_POPULATE_WRITE) != 0) return refused("populating huge pages");
  return memory;
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
  const std::size_t page = page_of(fd.get());
  return SharedMemory(std::move(fd), {static_cast<std::byte*>(address), size}, page);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::move(other.fd_)), bytes_(std::exchange(other.bytes_, {})), page_(other.page_) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(bytes_, other.bytes_);
  std::swap(page_, other.page_);
  return *this;
}

SharedMemory::~SharedMemory() {
  // Huge pages are unmapped whole or not at all.
  if (!bytes_.empty()) ::munmap(bytes_.data(), (bytes_.size() + page_ - 1) / page_ * page_);
}

Status SharedMemory::seal_for_others() {
  return ::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0 ? Status() : refused("sealing against writes");
}

}  // namespace moonpool::transfer
