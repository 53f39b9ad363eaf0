// A whole pool in the test's process: the real master and real clients over the real wire, on free ports.
//
// Values are made from key and version, so that any read tells whose bytes it got.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "master/master.h"
#include "store/client.h"

namespace moonpool::store::testing {

using Bytes = std::vector<std::byte>;

// `size` bytes that depend on every bit of key and version.
[[nodiscard]] Bytes pattern(std::string_view key, std::uint64_t version, std::size_t size);

[[nodiscard]] master::MasterConfig test_master_config();
// A client of that master that lends `segment_size`.
[[nodiscard]] ClientOptions test_client_options(std::uint16_t master_port, std::uint64_t segment_size = std::uint64_t{64} << 20);

// One key, one contiguous value.
[[nodiscard]] std::int32_t put_one(Client& client, std::string_view key, std::span<const std::byte> value,
                                   const ReplicaPolicy& policy = {});
[[nodiscard]] std::int32_t upsert_one(Client& client, std::string_view key, std::span<const std::byte> value);
[[nodiscard]] std::int64_t get_one(Client& client, std::string_view key, std::span<std::byte> destination, bool exact = true);
[[nodiscard]] Result<Bytes> get_fresh(Client& client, std::string_view key);
[[nodiscard]] std::int32_t exist_one(Client& client, std::string_view key);
[[nodiscard]] std::int32_t remove_one(Client& client, std::string_view key, bool force = false);

// The master and its clients. Clients go first.
class Pool {
 public:
  explicit Pool(master::MasterConfig config = test_master_config());
  ~Pool();

  [[nodiscard]] master::Master& master() { return *master_; }
  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] ClientOptions options(std::uint64_t segment_size = std::uint64_t{64} << 20) const {
    return test_client_options(port_, segment_size);
  }
  // Aborts the test's process with the reason when it cannot be made.
  [[nodiscard]] std::unique_ptr<Client> client(std::uint64_t segment_size = std::uint64_t{64} << 20) const;
  [[nodiscard]] std::unique_ptr<Client> client(ClientOptions options) const;

  // As a kill -9 of the master's process, as far as its peers can tell; then a new one on the same port.
  void stop_master();
  void start_master();

 private:
  master::MasterConfig config_;
  std::unique_ptr<master::Master> master_;
  std::uint16_t port_ = 0;
};

}  // namespace moonpool::store::testing
