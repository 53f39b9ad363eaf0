#include "cli/doctor/memory_checks.h"

#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <sstream>

#include "net/socket.h"

namespace moonpool::cli::doctor {

namespace {

std::string limit_text(std::uint64_t bytes) { return bytes == kNoLimit ? "unlimited" : in_units(static_cast<double>(bytes)); }

std::uint64_t limit_of(rlim_t value) { return value == RLIM_INFINITY ? kNoLimit : static_cast<std::uint64_t>(value); }

// The value behind "Name:" in a file of such lines; empty when there is none.
std::string line_value(const std::string& text, std::string_view name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (const auto at = line.find(name); at != std::string::npos) {
      const auto start = line.find_first_not_of(" \t", at + name.size());
      return start == std::string::npos ? std::string() : line.substr(start);
    }
  }
  return {};
}

// "16384 kB" in bytes.
std::uint64_t kilobytes(const std::string& text) {
  std::uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number * 1024;
}

// The chosen one of "always [madvise] never".
std::string chosen(const std::optional<std::string>& text) {
  if (!text) return {};
  const auto open = text->find('[');
  const auto close = text->find(']', open == std::string::npos ? 0 : open);
  if (open == std::string::npos || close == std::string::npos) return {};
  return text->substr(open + 1, close - open - 1);
}

}  // namespace

MemoryLock read_memory_lock(const HostFiles& host) {
  MemoryLock limit;
  rlimit values{};
  if (::getrlimit(RLIMIT_MEMLOCK, &values) == 0) limit = {limit_of(values.rlim_cur), limit_of(values.rlim_max), false};
  const std::string effective = line_value(host.read("/proc/self/status").value_or(""), "CapEff:");
  std::uint64_t bits = 0;
  std::from_chars(effective.data(), effective.data() + effective.size(), bits, 16);
  // In a user namespace of its own a process may hold the capability there, and not where the kernel looks.
  std::istringstream map(host.read("/proc/self/uid_map").value_or(""));
  std::uint64_t inside = 1;
  std::uint64_t outside = 1;
  std::uint64_t count = 0;
  map >> inside >> outside >> count;
  limit.exempt = (bits >> CAP_IPC_LOCK & 1) != 0 && inside == 0 && outside == 0 && count == 0xFFFFFFFF;
  return limit;
}

Findings check_memory_lock(const MemoryLock& limit, std::uint64_t needed) {
  const std::string text = fmt::format("soft {}, hard {}", limit_text(limit.soft), limit_text(limit.hard));
  if (limit.exempt) return {ok(text + "; this process is exempt (CAP_IPC_LOCK)")};
  if (limit.soft == kNoLimit) return {ok(text)};
  constexpr const char* kRemedy =
      "systemd: LimitMEMLOCK=infinity; containers: --ulimit memlock=-1; Kubernetes: the runtime's service; a shell: ulimit -l unlimited, "
      "allowed by memlock lines in /etc/security/limits.conf";
  if (needed == 0) return {note(text + "; RDMA would need as much as it registers: segment and local buffer", kRemedy)};
  if (limit.soft >= needed) return {ok(fmt::format("{}; {} will be registered", text, limit_text(needed)))};
  return {error(fmt::format("{}, and the configuration registers {} with the NICs", text, limit_text(needed)), kRemedy)};
}

HugePages read_huge_pages(const HostFiles& host) {
  HugePages pages;
  for (const std::string& name : host.names("/sys/kernel/mm/hugepages")) {
    constexpr std::string_view kPrefix = "hugepages-";
    if (!name.starts_with(kPrefix)) continue;
    const std::uint64_t size = kilobytes(name.substr(kPrefix.size()));
    const auto count = [&](const char* file) {
      return static_cast<std::uint64_t>(host.read_number("/sys/kernel/mm/hugepages/" + name + "/" + file).value_or(0));
    };
    if (size > 0) pages.pools[size] = {count("nr_hugepages"), count("free_hugepages")};
  }
  pages.transparent = chosen(host.read("/sys/kernel/mm/transparent_hugepage/enabled"));
  pages.transparent_shared = chosen(host.read("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
  return pages;
}

Findings check_huge_pages(const HugePages& pages, std::uint64_t needed) {
  Findings found;
  std::uint64_t free_bytes = 0;
  std::uint64_t reserved_bytes = 0;
  for (const auto& [size, pool] : pages.pools) {
    free_bytes += size * pool.free;
    reserved_bytes += size * pool.reserved;
    if (pool.reserved == 0) continue;
    found.push_back(ok(fmt::format("{} pages: {} reserved, {} free ({})", in_units(static_cast<double>(size)), pool.reserved, pool.free,
                                   in_units(static_cast<double>(size * pool.free)))));
  }
  if (needed > 0 && free_bytes < needed) {
    found.push_back(note(fmt::format("{} of huge pages are free, and the segment has {}: it will lie in ordinary pages",
                                     in_units(static_cast<double>(free_bytes)), in_units(static_cast<double>(needed))),
                         fmt::format("sysctl vm.nr_hugepages={} (2 MiB each) makes registering faster and spares the NIC's table of pages",
                                     (reserved_bytes - free_bytes + needed + (2U << 20) - 1) / (2U << 20))));
  } else if (found.empty()) {
    found.push_back(ok("none reserved"));
  }
  const auto or_none = [](const std::string& text) { return text.empty() ? std::string("not in this kernel") : text; };
  found.push_back(
      ok(fmt::format("transparent ones: {}; for shared memory: {}", or_none(pages.transparent), or_none(pages.transparent_shared))));
  return found;
}

std::vector<NumaNode> read_numa_nodes(const HostFiles& host) {
  std::vector<NumaNode> nodes;
  for (const std::string& name : host.names("/sys/devices/system/node")) {
    NumaNode node;
    if (!name.starts_with("node")) continue;
    const auto [end, error] = std::from_chars(name.data() + 4, name.data() + name.size(), node.number);
    if (error != std::errc() || end != name.data() + name.size()) continue;
    node.cpus = host.read("/sys/devices/system/node/" + name + "/cpulist").value_or("");
    const std::string memory = host.read("/sys/devices/system/node/" + name + "/meminfo").value_or("");
    node.memory = kilobytes(line_value(memory, "MemTotal:"));
    node.free = kilobytes(line_value(memory, "MemFree:"));
    nodes.push_back(std::move(node));
  }
  return nodes;
}

Findings check_numa(const std::vector<NumaNode>& nodes, std::uint64_t segment_bytes) {
  if (nodes.empty()) return {note("the kernel tells nothing about NUMA nodes")};
  Findings found;
  for (const NumaNode& node : nodes) {
    found.push_back(ok(fmt::format("node {}: CPUs {}, {}, {} free", node.number, node.cpus.empty() ? "none" : node.cpus,
                                   in_units(static_cast<double>(node.memory)), in_units(static_cast<double>(node.free)))));
  }
  std::uint64_t all = 0;
  for (const NumaNode& node : nodes) all += node.memory;
  if (all > 0 && segment_bytes > all) {
    found.push_back(error(fmt::format("the segment of {} is larger than this host's memory of {}",
                                      in_units(static_cast<double>(segment_bytes)), in_units(static_cast<double>(all))),
                          "lower global_segment_size"));
  }
  return found;
}

SharedMemory read_shared_memory() {
  SharedMemory memory;
  struct statvfs space {};
  if (::statvfs("/dev/shm", &space) == 0) {
    memory.size = static_cast<std::uint64_t>(space.f_blocks) * space.f_frsize;
    memory.free = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
  }
  const int fd = ::memfd_create("moonpool doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    memory.memfd_error = net::errno_text(errno);
  } else {
    ::close(fd);
  }
  return memory;
}

Findings check_shared_memory(const SharedMemory& memory) {
  Findings found;
  if (memory.memfd_error.empty()) {
    found.push_back(ok("memfd works: processes of this host and user share the pool's memory"));
  } else {
    found.push_back(warning(fmt::format("memfd_create failed ({}): processes of this host use TCP between each other", memory.memfd_error),
                            "allow memfd_create in the container's seccomp profile"));
  }
  constexpr std::uint64_t kDockersDefault = std::uint64_t{64} << 20;
  if (!memory.size) {
    found.push_back(note("there is no /dev/shm; Moonpool does not need it, vLLM's workers do", "mount a tmpfs there"));
  } else if (*memory.size <= kDockersDefault) {
    found.push_back(note(
        fmt::format("/dev/shm has {}; Moonpool does not need it, vLLM with several GPUs does", in_units(static_cast<double>(*memory.size))),
        "docker run --shm-size=8g (or --ipc=host)"));
  } else {
    found.push_back(
        ok(fmt::format("/dev/shm: {}, {} free", in_units(static_cast<double>(*memory.size)), in_units(static_cast<double>(memory.free)))));
  }
  return found;
}

FileLimit read_file_limit() {
  rlimit values{};
  if (::getrlimit(RLIMIT_NOFILE, &values) != 0) return {};
  return {limit_of(values.rlim_cur), limit_of(values.rlim_max)};
}

Findings check_file_limit(const FileLimit& limit) {
  const auto count = [](std::uint64_t files) { return files == kNoLimit ? std::string("unlimited") : std::to_string(files); };
  const std::string text = fmt::format("soft {}, hard {} open files", count(limit.soft), count(limit.hard));
  // A few lanes to each peer, each on both sides; a gateway has two sockets a request.
  constexpr std::uint64_t kFew = 4096;
  if (limit.soft >= kFew) return {ok(text)};
  const std::string remedy = "ulimit -n 65536 (systemd: LimitNOFILE=65536; containers: --ulimit nofile=65536)";
  if (limit.soft < 1024) return {warning(text + ": too few for a pool of some dozens of nodes", remedy)};
  return {note(text + ": enough for a node of a small pool; a gateway and a master of many nodes want more", remedy)};
}

}  // namespace moonpool::cli::doctor
