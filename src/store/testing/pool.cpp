#include "store/testing/pool.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>

namespace moonpool::store::testing {

namespace {

template <typename T>
T value_or_die(Result<T> result, const char* what) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s: %s\n", what, result.status().to_string().c_str());
    std::abort();
  }
  return std::move(result).value();
}

std::vector<std::int32_t> put_batch_of_one(Client& client, std::string_view key, std::span<const std::byte> value,
                                           const ReplicaPolicy& policy, bool upsert) {
  const ConstBytes piece = value;
  const std::span<const ConstBytes> source(&piece, 1);
  const std::span<const std::string_view> keys(&key, 1);
  return upsert ? client.upsert(keys, {&source, 1}, policy) : client.put(keys, {&source, 1}, policy);
}

}  // namespace

Bytes pattern(std::string_view key, std::uint64_t version, std::size_t size) {
  Bytes bytes(size);
  std::uint64_t state = std::hash<std::string_view>{}(key) ^ (version * 0x9E3779B97F4A7C15ULL);
  std::size_t at = 0;
  while (at < size) {
    // splitmix64
    std::uint64_t z = (state += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
    const std::size_t step = std::min<std::size_t>(sizeof(z), size - at);
    std::memcpy(bytes.data() + at, &z, step);
    at += step;
  }
  return bytes;
}

master::MasterConfig test_master_config() {
  master::MasterConfig config;
  config.port = 0;
  config.metrics_port = 0;
  config.metric_reporting = false;
  config.recovery_window = std::chrono::milliseconds(500);
  return config;
}

ClientOptions test_client_options(std::uint16_t master_port, std::uint64_t segment_size) {
  ClientOptions options;
  options.local_hostname = "127.0.0.1";
  options.master_address = "127.0.0.1:" + std::to_string(master_port);
  options.segment_size = segment_size;
  options.local_buffer_size = 16 << 20;
  options.handover_wait = std::chrono::milliseconds(0);
  return options;
}

std::int32_t put_one(Client& client, std::string_view key, std::span<const std::byte> value, const ReplicaPolicy& policy) {
  return put_batch_of_one(client, key, value, policy, false).at(0);
}

std::int32_t upsert_one(Client& client, std::string_view key, std::span<const std::byte> value) {
  return put_batch_of_one(client, key, value, {}, true).at(0);
}

std::int64_t get_one(Client& client, std::string_view key, std::span<std::byte> destination, bool exact) {
  const MutableBytes piece = destination;
  const std::span<const MutableBytes> pieces(&piece, 1);
  return client.get_into({&key, 1}, {&pieces, 1}, exact).at(0);
}

Result<Bytes> get_fresh(Client& client, std::string_view key) { return std::move(client.get({&key, 1}).at(0)); }

std::int32_t exist_one(Client& client, std::string_view key) { return client.exist({&key, 1}).at(0); }

std::int32_t remove_one(Client& client, std::string_view key, bool force) { return client.remove({&key, 1}, force).at(0); }

Pool::Pool(master::MasterConfig config) : config_(std::move(config)) { start_master(); }

Pool::~Pool() = default;

std::unique_ptr<Client> Pool::client(std::uint64_t segment_size) const { return client(options(segment_size)); }

std::unique_ptr<Client> Pool::client(ClientOptions options) const { return value_or_die(Client::create(std::move(options)), "client"); }

void Pool::stop_master() { master_.reset(); }

void Pool::start_master() {
  config_.port = port_;
  master_ = value_or_die(master::Master::start(config_), "master");
  port_ = master_->port();
}

}  // namespace moonpool::store::testing
