// Limits and memory: what may be locked (RDMA pins what it registers), huge pages, NUMA nodes, /dev/shm and memfd, open files.
//
// Each has facts that are read once and a pure function that judges them. Threads: any.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/doctor/finding.h"
#include "cli/doctor/host_files.h"

namespace moonpool::cli::doctor {

inline constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

struct MemoryLock {
  std::uint64_t soft = 0;  // bytes, or kNoLimit
  std::uint64_t hard = 0;
  bool exempt = false;  // the process has CAP_IPC_LOCK, which the kernel asks for first
};
[[nodiscard]] MemoryLock read_memory_lock(const HostFiles& host);
// `needed`: what the configuration will register; 0 when nobody asked for RDMA.
[[nodiscard]] Findings check_memory_lock(const MemoryLock& limit, std::uint64_t needed);

struct HugePages {
  struct Pool {
    std::uint64_t reserved = 0;
    std::uint64_t free = 0;
  };
  std::map<std::uint64_t, Pool> pools;  // by page size in bytes
  std::string transparent;              // "always", "madvise", "never"; empty: this kernel has none
  std::string transparent_shared;       // for shared memory ("shmem_enabled")
};
[[nodiscard]] HugePages read_huge_pages(const HostFiles& host);
[[nodiscard]] Findings check_huge_pages(const HugePages& pages, std::uint64_t needed);

struct NumaNode {
  std::int64_t number = 0;
  std::string cpus;  // "0-15,32-47"
  std::uint64_t memory = 0;
  std::uint64_t free = 0;
};
[[nodiscard]] std::vector<NumaNode> read_numa_nodes(const HostFiles& host);
[[nodiscard]] Findings check_numa(const std::vector<NumaNode>& nodes, std::uint64_t segment_bytes);

struct SharedMemory {
  std::optional<std::uint64_t> size;  // of /dev/shm; nullopt: there is none
  std::uint64_t free = 0;
  std::string memfd_error;  // empty: memfd_create works
};
[[nodiscard]] SharedMemory read_shared_memory();
[[nodiscard]] Findings check_shared_memory(const SharedMemory& memory);

struct FileLimit {
  std::uint64_t soft = 0;
  std::uint64_t hard = 0;
};
[[nodiscard]] FileLimit read_file_limit();
[[nodiscard]] Findings check_file_limit(const FileLimit& limit);

}  // namespace moonpool::cli::doctor
