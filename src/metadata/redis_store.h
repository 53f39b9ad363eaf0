// A MetadataStore kept by Redis: GET, SET and DEL in the database of the URL, after AUTH and SELECT on each new connection.
//
// hiredis writes and parses the protocol; the bytes go through DeadlineSocket, because hiredis' own calls have time-outs per read, not
// deadlines, and raise SIGPIPE. A kept connection that a restarted server has closed is replaced unnoticed (a DEL whose answer was lost on
// the way may then say kObjectNotFound). Compiled only with MOONPOOL_WITH_REDIS. Threads: any; each call has a connection to itself.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "metadata/metadata_store.h"
#include "metadata/metadata_url.h"
#include "metadata/open_metadata_store.h"

namespace moonpool::metadata {

class RedisConnection;

class RedisStore final : public MetadataStore {
 public:
  RedisStore(MetadataUrl url, const MetadataStoreOptions& options);
  ~RedisStore() override;

  [[nodiscard]] Result<std::string> get(std::string_view key, Deadline deadline) override;
  [[nodiscard]] Status put(std::string_view key, std::string_view value, Deadline deadline) override;
  [[nodiscard]] Status remove(std::string_view key, Deadline deadline) override;
  [[nodiscard]] std::string describe() const override { return "redis at " + url_.to_string(); }

 private:
  struct Reply;
  [[nodiscard]] Result<Reply> call(const std::vector<std::string_view>& command, Deadline deadline);
  [[nodiscard]] Result<std::unique_ptr<RedisConnection>> connect(Deadline deadline) const;
  [[nodiscard]] std::unique_ptr<RedisConnection> take_idle();
  void give_back(std::unique_ptr<RedisConnection> connection);

  const MetadataUrl url_;
  const std::size_t max_idle_connections_;
  std::mutex mutex_;  // guards idle_
  std::vector<std::unique_ptr<RedisConnection>> idle_;
};

}  // namespace moonpool::metadata
