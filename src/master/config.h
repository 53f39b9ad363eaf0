// Everything that can be set about a master, parsed once (flags.h) and passed down.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace moonpool::master {

struct MasterConfig {
  // Bound exactly; nothing listens on all interfaces unless the user wrote 0.0.0.0.
  std::string host = "127.0.0.1";
  std::uint16_t port = 50051;  // 0: any free one
  std::size_t threads = 2;
  std::string metrics_host = "127.0.0.1";
  std::uint16_t metrics_port = 9003;  // 0: any free one
  bool enable_http_metadata_server = false;
  std::string http_metadata_server_host = "127.0.0.1";
  std::uint16_t http_metadata_server_port = 8080;

  std::chrono::milliseconds lease_ttl{10'000};
  std::chrono::milliseconds soft_pin_ttl{1'800'000};  // when a put asks for none
  std::chrono::milliseconds max_soft_pin_ttl{86'400'000};
  bool allow_evict_soft_pinned = true;
  double eviction_high_watermark_ratio = 0.90;
  double eviction_ratio = 0.05;
  std::chrono::milliseconds client_ttl{10'000};        // a node silent for longer is expired and its segments fenced
  std::chrono::milliseconds put_timeout{30'000};       // an unfinished put older than this is revoked
  std::chrono::milliseconds handover_wait{500};        // the longest wait of a look-up for a key that is on its way
  std::chrono::milliseconds recovery_window{1000};     // 0: a key that is not known at once is a miss
  std::chrono::milliseconds longest_recovery{10'000};  // while owners that have come back still report
  std::chrono::milliseconds room_wait{2000};           // how long a put waits for evicted space to be acknowledged
  bool metric_reporting = true;                        // one summary line a minute in the log

  std::string cluster_id = "mooncake_cluster";
  std::string cluster_token;  // empty: no authentication. Never logged.
  std::string log_level;
};

}  // namespace moonpool::master
