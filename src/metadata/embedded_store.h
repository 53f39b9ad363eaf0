// The metadata store in this process's own memory: what a master serves when no other metadata server is wanted.
//
// Cost: a lock and a hash lookup. Bounded: a put that would take all keys and values together above `max_bytes` is refused, since strangers
// on the cluster's network can reach it through metadata_http_service.h. Nothing survives the process; its clients put their facts again
// when they register anew. Threads: any.
#pragma once

#include <mutex>
#include <string>
#include <unordered_map>

#include "metadata/metadata_store.h"

namespace moonpool::metadata {

class EmbeddedStore final : public MetadataStore {
 public:
  explicit EmbeddedStore(std::size_t max_bytes = std::size_t{256} << 20) : max_bytes_(max_bytes) {}

  [[nodiscard]] Result<std::string> get(std::string_view key, Deadline deadline) override;
  [[nodiscard]] Status put(std::string_view key, std::string_view value, Deadline deadline) override;
  [[nodiscard]] Status remove(std::string_view key, Deadline deadline) override;
  [[nodiscard]] std::string describe() const override { return "embedded metadata store"; }

 private:
  const std::size_t max_bytes_;
  std::mutex mutex_;  // guards what follows
  std::unordered_map<std::string, std::string> values_;
  std::size_t bytes_ = 0;  // of all keys and values
};

}  // namespace moonpool::metadata
