#include "transfer/segment_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include "base/logging.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace moonpool::transfer {

namespace {

constexpr int kToucherNiceness = 10;

// What bounds this process's memory, for the error text: nothing is decided by it.
std::string memory_limits() {
  std::string text;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("MemAvailable:")) text = "available on this machine: " + line.substr(line.find_first_not_of(' ', 13));
  }
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    text += ", address space limit of this process: " + std::to_string(limit.rlim_cur) + " bytes (ulimit -v)";
  }
  return text;
}

// Kernels before 5.14 lack MADV_POPULATE_WRITE. Adding zero atomically leaves whatever a writer puts there meanwhile.
void touch_page_by_page(MutableBytes range, std::size_t page) {
  for (std::size_t at = 0; at < range.size(); at += page) {
    std::atomic_ref(reinterpret_cast<unsigned char&>(range[at])).fetch_or(0, std::memory_order_relaxed);
  }
}

}  // namespace

Result<std::shared_ptr<SegmentMemory>> SegmentMemory::map(std::uint64_t size, HugePages huge_pages) {
  if (size == 0) return Status(ErrorCode::kInvalidParams, "cannot mount a segment of 0 bytes: give it a size");
  if (huge_pages == HugePages::kIfReserved) {
    auto huge = SharedMemory::create_huge("moonpool segment", size);
    if (huge.ok()) {
      const MutableBytes bytes = huge->bytes();
      return std::shared_ptr<SegmentMemory>(new SegmentMemory(std::move(*huge), bytes, true, true));
    }
    log::debug("a segment of {} bytes does without huge pages: {}", size, huge.status().message());
  }
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t rounded = (size + page - 1) / page * page;
  auto shared = rounded < size ? Result<SharedMemory>(ErrorCode::kInternal, "") : SharedMemory::create("moonpool segment", rounded);
  void* address = MAP_FAILED;
  if (shared.ok()) {
    address = shared->bytes().data();
  } else if (rounded >= size) {
    log::info("a segment of {} bytes cannot be shared with other processes of this host, which will use tcp ({})", size,
              shared.status().message());
    address = ::mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  if (address == MAP_FAILED) {
    return Status(ErrorCode::kInternal, "cannot map a segment of " + std::to_string(size) +
                                            " bytes: " + std::strerror(rounded < size ? ENOMEM : errno) + " (" + memory_limits() +
                                            "); lend less memory (global_segment_size)");
  }
  ::madvise(address, rounded, MADV_NOHUGEPAGE);  // refused where the kernel has none: nothing is lost then
  const MutableBytes bytes(static_cast<std::byte*>(address), rounded);
  std::shared_ptr<SegmentMemory> memory(new SegmentMemory(shared.ok() ? std::move(*shared) : SharedMemory(), bytes, true, false));
  try {
    memory->toucher_ = std::thread([raw = memory.get()] { raw->touch(); });
  } catch (const std::system_error& error) {
    log::warning("segment of {} bytes is not touched ahead, first writes will be slow: no thread ({})", rounded, error.what());
  }
  return memory;
}

std::shared_ptr<SegmentMemory> SegmentMemory::lend(MutableBytes memory) {
  return std::shared_ptr<SegmentMemory>(new SegmentMemory(SharedMemory(), memory, false, false));
}

SegmentMemory::SegmentMemory(SharedMemory shared, MutableBytes bytes, bool mapped, bool huge)
    : shared_(std::move(shared)),
      bytes_(bytes),
      mapped_(mapped),
      huge_(huge),
      wanted_(mapped ? (huge ? bytes.size() : std::min(kTouchAhead, bytes.size())) : 0),
      touched_(huge ? bytes.size() : 0) {}

void SegmentMemory::stop_touching() {
  stop_ = true;
  wanted_.fetch_add(1);  // wakes a toucher that waits for more to do
  wanted_.notify_all();
  if (toucher_.joinable()) toucher_.join();
}

void SegmentMemory::discard(std::uint64_t offset, std::uint64_t length) {
  if (!mapped_) return;
  stop_touching();
  const std::uint64_t page = shared_.bytes().empty() ? static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) : shared_.page();
  const std::uint64_t first = (offset + page - 1) / page * page;
  const std::uint64_t end = (offset + length) / page * page;
  if (first >= end) return;
  // Only an economy: where it is refused the pages stay until the last reader has left.
  ::madvise(bytes_.data() + first, end - first, shared_.bytes().empty() ? MADV_DONTNEED : MADV_REMOVE);
}

SegmentMemory::~SegmentMemory() {
  stop_touching();
  if (mapped_ && shared_.bytes().empty()) ::munmap(bytes_.data(), bytes_.size());
}

void SegmentMemory::want(std::size_t end) {
  if (!mapped_) return;
  std::size_t wanted = wanted_.load(std::memory_order_relaxed);
  if (std::min(bytes_.size(), end + kTouchAhead) <= wanted) return;
  // Half a lead more than needed, so that a stream of puts wakes the toucher now and then, not each time.
  const std::size_t target = std::min(bytes_.size(), end + kTouchAhead + kTouchAhead / 2);
  while (wanted < target && !wanted_.compare_exchange_weak(wanted, target)) {
  }
  wanted_.notify_all();
}

void SegmentMemory::touch() {
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), kToucherNiceness);
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  for (std::size_t at = 0; at < bytes_.size();) {
    // In this order: whoever stops us sets stop_ first and changes wanted_ then.
    const std::size_t wanted = wanted_.load();
    if (stop_) return;
    if (at >= wanted) {
      wanted_.wait(wanted);
      continue;
    }
    const auto step = bytes_.subspan(at, std::min(kTouchStep, bytes_.size() - at));
    int error = 0;
    do {
      error = ::madvise(step.data(), step.size(), MADV_POPULATE_WRITE) == 0 ? 0 : errno;
    } while (error == EINTR && !stop_);
    if (error == EINVAL) {
      touch_page_by_page(step, page);
    } else if (error != 0) {
      log::warning("touching a segment of {} bytes ahead stopped at {}: {}; lend less memory if the machine is short of it", bytes_.size(),
                   at, std::strerror(error));
      return;
    }
    at += step.size();
    touched_.store(at, std::memory_order_release);
  }
}

}  // namespace moonpool::transfer
