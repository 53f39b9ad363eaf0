// How this process uses RDMA: one typed record, filled where settings are read (settings.h reads these names), passed down from there.
//
// | set by | also | what | default |
// | --- | --- | --- | --- |
// | "device_name", rdma_devices, --device_names | | NICs by name, with commas; empty or "auto": all whose port is up | all |
// | MOONPOOL_RDMA_PORT | MC_IB_PORT | the port of each NIC, from 1 | 1 |
// | MOONPOOL_RDMA_GID_INDEX | MC_GID_INDEX | entry of the port's GID table (show_gids); "auto" or -1: by the peer's network | auto |
// | MOONPOOL_RDMA_MTU | MC_MTU | of a path, in bytes: 256, 512, 1024, 2048 or 4096; 0: the port's | 0 |
// | MOONPOOL_RDMA_TRAFFIC_CLASS | MC_IB_TC | of RoCE: DSCP << 2, 0 to 255 | 0 |
// | MOONPOOL_RDMA_SERVICE_LEVEL | | of InfiniBand; for RoCE the priority, 0 to 15 | 0 |
// | MOONPOOL_RDMA_ACK_TIMEOUT | | time without an answer until a NIC sends again: 4.096 us << n, n from 1 to 31 | 14 (67 ms) |
// | MOONPOOL_RDMA_RETRIES | MC_RETRY_CNT | so often, before a path counts as broken; 0 to 7 (MC_RETRY_CNT may be more, which means 7) | 3 |
// | MOONPOOL_RDMA_CONNECTION_MANAGER | | 1: connect through rdma_cm also where the NIC does not need it | 0 |
// | MOONPOOL_RDMA_WAITING | | adaptive (polls, then sleeps), poll (a core for each caller) or event (sleeps at once) | adaptive |
// | MOONPOOL_RDMA_SPIN_US | | how long adaptive polls, in microseconds | 50 |
// | MOONPOOL_RDMA_SESSIONS | | batches under way with one peer, 1 to 64 | 4 |
// | MOONPOOL_RDMA_WORK_REQUESTS | | outstanding on one queue pair, 16 to 32768 (lowered to what the NIC can) | 256 |
// | MOONPOOL_RDMA_STRIPE | | a batch from this size on is spread over several NICs ("1MB") | 1MB |
// | MOONPOOL_RDMA_STAGING | | registered at the first use, for memory that the user has not registered ("64MB") | 64MB |
// | MOONPOOL_RDMA_COME_BACK_MS | | a path that failed is tried again after this time | 1000 |
// | MOONPOOL_RDMA_HUGE_PAGES | | auto: a segment takes huge pages if the host has reserved enough (vm.nr_hugepages); never | auto |
// | MOONPOOL_PATHS, --paths | | some of local,shm,rdma,tcp; without tcp it never takes over from RDMA | all |
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace moonpool::transfer::rdma {

// How a caller waits for its completions.
enum class Waiting : std::uint8_t {
  kAdaptive,  // polls for spin_time, then sleeps on the completion channel
  kPoll,      // polls to the end: the lowest latency, a core for each caller
  kEvent,     // sleeps at once
};

struct Options {
  std::string device_names;  // "mlx5_0,mlx5_1"; empty or "auto": all whose port is up
  std::uint32_t port = 1;
  std::int32_t gid_index = -1;  // -1: chosen by the peer's network (gid_choice.h)
  std::uint32_t mtu = 0;        // bytes: 256, 512, ... 4096; 0: the port's
  std::uint32_t traffic_class = 0;
  std::uint32_t service_level = 0;
  std::uint32_t ack_timeout = 14;
  std::uint32_t retries = 3;
  bool connection_manager = false;  // rdma_cm for all; iWARP NICs use it anyway
  Waiting waiting = Waiting::kAdaptive;
  std::chrono::microseconds spin_time{50};
  std::uint32_t sessions_per_peer = 4;              // batches under way with one peer
  std::uint32_t work_requests = 256;                // outstanding, per queue pair
  std::uint64_t stripe_bytes = 1u << 20;            // a batch smaller than this goes over one NIC; larger ones over several
  std::uint64_t staging_bytes = 64u << 20;          // registered at the first use, for memory that the user has not registered
  std::chrono::milliseconds come_back_after{1000};  // a failed path is tried again after this time
  bool huge_pages = true;                           // for segments of ours, if the host has reserved enough
};

}  // namespace moonpool::transfer::rdma
