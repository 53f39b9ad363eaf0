#include "transfer/rdma/numa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>

namespace moonpool::transfer::rdma {

namespace {

constexpr std::size_t kSample = 64;

}  // namespace

std::int32_t numa_node_of(ConstBytes memory) {
  if (memory.empty()) return -1;
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t first = reinterpret_cast<std::uint64_t>(memory.data()) / page;
  const std::uint64_t count = (reinterpret_cast<std::uint64_t>(memory.data()) + memory.size() - 1) / page - first + 1;
  const std::uint64_t sample = std::min<std::uint64_t>(count, kSample);
  std::array<void*, kSample> pages{};
  std::array<int, kSample> nodes{};
  for (std::uint64_t i = 0; i < sample; ++i) {
    const std::uint64_t at = sample == 1 ? 0 : i * (count - 1) / (sample - 1);
    pages[i] = reinterpret_cast<void*>((first + at) * page);  // NOLINT(performance-no-int-to-ptr): an address, rounded to its page
  }
  // move_pages(2) without target nodes moves nothing and tells each page's node, or an error code for it.
  if (::syscall(SYS_move_pages, 0, sample, pages.data(), nullptr, nodes.data(), 0) != 0) return -1;
  std::map<int, std::size_t> votes;
  for (std::uint64_t i = 0; i < sample; ++i) {
    if (nodes[i] >= 0) ++votes[nodes[i]];
  }
  if (votes.empty()) return -1;
  return std::ranges::max_element(votes, {}, [](const auto& vote) { return vote.second; })->first;
}

}  // namespace moonpool::transfer::rdma
