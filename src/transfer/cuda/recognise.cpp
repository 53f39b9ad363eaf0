#include "transfer/cuda/recognise.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "net/unique_fd.h"

namespace moonpool::transfer::cuda {

namespace {

// The kernel copies the bytes, and says so where it cannot. Where it cannot be asked there is no reason for doubt.
bool is_readable(ConstBytes memory) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) return true;
  const net::UniqueFd from(ends[0]);
  const net::UniqueFd to(ends[1]);
  const auto passes = [&](const std::byte& one) { return ::write(to.get(), &one, 1) == 1 || errno != EFAULT; };
  return passes(memory.front()) && passes(memory.back());
}

}  // namespace

Result<std::optional<int>> recognise(ConstBytes memory, const Runtime* runtime, std::string_view why) {
  const auto refused = [&](const std::string& what) {
    return Status(ErrorCode::kInvalidParams,
                  fmt::format("{} bytes at {:#x} {}", memory.size(), reinterpret_cast<std::uintptr_t>(memory.data()), what));
  };
  if (runtime == nullptr) {
    if (is_readable(memory)) return std::optional<int>();
    return refused(fmt::format("are no memory that this process can read; if they are device memory, CUDA is missing: {}", why));
  }
  const auto first = runtime->device_of(memory.data());
  const auto last = runtime->device_of(&memory.back());
  if (first != last) return refused("are not in the memory of one device, or not all of them");
  if (first) return first;
  if (is_readable(memory)) return std::optional<int>();
  return refused("are neither memory that this process can read nor device memory that CUDA knows");
}

}  // namespace moonpool::transfer::cuda
