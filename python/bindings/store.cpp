#include "python/bindings/store.h"

#include <limits>
#include <type_traits>

#include "base/logging.h"
#include "python/bindings/gil.h"

namespace moonpool::python {

namespace {

bool is_memory(std::uint64_t address, std::uint64_t size) {
  return address != 0 && size <= std::numeric_limits<std::uint64_t>::max() - address;
}

template <typename Piece>
Piece piece_at(std::uint64_t address, std::uint64_t size) {
  using Byte = std::conditional_t<std::is_same_v<Piece, transfer::MutableBytes>, std::byte, const std::byte>;
  return Piece(reinterpret_cast<Byte*>(address), size);
}

// A row of one number, as a span, for the calls with one buffer per key.
std::span<const std::uint64_t> row(const Numbers& numbers, std::size_t i) { return std::span(numbers.values).subspan(i, 1); }
std::span<const std::uint64_t> row(const NestedNumbers& numbers, std::size_t i) { return numbers[i]; }

template <typename Piece, typename Table>
Batch<Piece> make_batch(const Keys& keys, const Table& addresses, const Table& sizes) {
  std::size_t pieces = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) pieces += row(addresses, i).size();
  Batch<Piece> batch(keys.size(), pieces);
  for (std::size_t i = 0; i < keys.size(); ++i) batch.add(i, keys.views()[i], row(addresses, i), row(sizes, i));
  return batch;
}

template <typename Values>
Values all(std::size_t count, std::int32_t code) {
  return Values(count, code);
}

// Group names belong to keys: the policy of a batch from which entries were left out keeps only the names of those that stayed.
store::ReplicaPolicy policy_for(const ReplicateConfig& config, const std::vector<std::size_t>& positions, std::size_t keys) {
  store::ReplicaPolicy policy = config.policy();
  if (policy.groups.empty() || positions.size() == keys) return policy;
  std::vector<std::string> kept;
  kept.reserve(positions.size());
  for (const std::size_t position : positions) kept.push_back(position < policy.groups.size() ? policy.groups[position] : std::string());
  policy.groups = std::move(kept);
  return policy;
}

template <typename Table>
Codes write_table(Store& store, std::string_view call, WriteMode mode, const Keys& keys, const Table& addresses, const Table& sizes,
                  const ReplicateConfig& config) {
  if (addresses.size() != keys.size() || sizes.size() != keys.size() || config.replica_num == 0) return all<Codes>(keys.size(), kInvalid);
  if (config.group_ids && !config.group_ids->empty() && config.group_ids->size() != keys.size()) {
    log::error("{}: group_ids has {} names for {} keys: give one per key, or None", call, config.group_ids->size(), keys.size());
    return all<Codes>(keys.size(), kInvalid);
  }
  if (keys.size() == 0) return {};
  return without_gil([&] {
    const auto client = store.client(call);
    if (client == nullptr) return all<Codes>(keys.size(), kNotSetUp);
    const auto batch = make_batch<transfer::ConstBytes>(keys, addresses, sizes);
    Codes answer(keys.size(), kInvalid);
    if (batch.empty()) return answer;
    const store::ReplicaPolicy policy = policy_for(config, batch.positions(), keys.size());
    const Codes codes =
        mode == WriteMode::kPut ? client->put(batch.keys(), batch.spans(), policy) : client->upsert(batch.keys(), batch.spans(), policy);
    for (std::size_t i = 0; i < codes.size(); ++i) answer[batch.positions()[i]] = codes[i];
    return answer;
  });
}

template <typename Table>
Counts read_table(Store& store, std::string_view call, const Keys& keys, const Table& addresses, const Table& sizes, bool exact) {
  if (addresses.size() != keys.size() || sizes.size() != keys.size()) return all<Counts>(keys.size(), kInvalid);
  if (keys.size() == 0) return {};
  return without_gil([&] {
    const auto client = store.client(call);
    if (client == nullptr) return all<Counts>(keys.size(), kNotSetUp);
    const auto batch = make_batch<transfer::MutableBytes>(keys, addresses, sizes);
    Counts answer(keys.size(), kInvalid);
    if (batch.empty()) return answer;
    const Counts counts = client->get_into(batch.keys(), batch.spans(), exact);
    for (std::size_t i = 0; i < counts.size(); ++i) answer[batch.positions()[i]] = counts[i];
    return answer;
  });
}

}  // namespace

Store::~Store() {
  if (handle_.get() != nullptr) without_gil([&] { close(); });
}

std::int32_t Store::open(store::ClientOptions options, const transfer::rdma::Variables& rdma) {
  if (options.protocol == "rdma") {
    auto set = transfer::rdma::with_variables(std::move(options.rdma), rdma);
    if (!set.ok()) {
      log::error("setup failed: {}", set.status().message());
      return kInvalid;
    }
    options.rdma = std::move(*set);
  }
  const Status status = handle_.open([&] { return store::Client::create(std::move(options)); });
  if (!status.ok()) {
    log::error("setup failed: {}", status.to_string());
    return status.number();
  }
  warned_ = false;
  return 0;
}

std::int32_t Store::close() {
  if (const auto client = handle_.take()) client->close();
  return 0;
}

std::shared_ptr<store::Client> Store::client(std::string_view call) {
  auto client = handle_.get();
  if (client == nullptr && !warned_.exchange(true)) {
    log::error(
        "{}: this store is not set up in this process: call setup() first, and again after close() or fork(); calls until then fail with "
        "{}",
        call, kNotSetUp);
  }
  return client;
}

template <typename Piece>
bool Batch<Piece>::add(std::size_t position, std::string_view key, std::span<const std::uint64_t> addresses,
                       std::span<const std::uint64_t> sizes) {
  if (addresses.size() != sizes.size()) return false;
  const std::size_t first = pieces_.size();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) continue;
    if (!is_memory(addresses[i], sizes[i])) {
      pieces_.resize(first);
      return false;
    }
    pieces_.push_back(piece_at<Piece>(addresses[i], sizes[i]));
  }
  keys_.push_back(key);
  spans_.emplace_back(pieces_.data() + first, pieces_.size() - first);
  positions_.push_back(position);
  return true;
}

template class Batch<transfer::ConstBytes>;
template class Batch<transfer::MutableBytes>;

Codes write_values(Store& store, std::string_view call, WriteMode mode, std::span<const std::string_view> keys,
                   std::span<const std::span<const transfer::ConstBytes>> values, const ReplicateConfig& config) {
  if (values.size() != keys.size() || config.replica_num == 0) return all<Codes>(keys.size(), kInvalid);
  if (keys.empty()) return {};
  return without_gil([&] {
    const auto client = store.client(call);
    if (client == nullptr) return all<Codes>(keys.size(), kNotSetUp);
    const store::ReplicaPolicy policy = config.policy();
    return mode == WriteMode::kPut ? client->put(keys, values, policy) : client->upsert(keys, values, policy);
  });
}

Codes write_memory(Store& store, std::string_view call, WriteMode mode, const Keys& keys, const Numbers& addresses, const Numbers& sizes,
                   const ReplicateConfig& config) {
  return write_table(store, call, mode, keys, addresses, sizes, config);
}

Codes write_memory(Store& store, std::string_view call, WriteMode mode, const Keys& keys, const NestedNumbers& addresses,
                   const NestedNumbers& sizes, const ReplicateConfig& config) {
  return write_table(store, call, mode, keys, addresses, sizes, config);
}

Counts read_memory(Store& store, std::string_view call, const Keys& keys, const Numbers& addresses, const Numbers& sizes) {
  return read_table(store, call, keys, addresses, sizes, false);
}

Counts read_memory(Store& store, std::string_view call, const Keys& keys, const NestedNumbers& addresses, const NestedNumbers& sizes) {
  return read_table(store, call, keys, addresses, sizes, true);
}

Counts read_ranges(Store& store, std::string_view call, const Keys& keys, const NestedNumbers& addresses, const NestedNumbers& sizes,
                   const NestedNumbers& source_offsets) {
  if (addresses.size() != keys.size() || sizes.size() != keys.size() || source_offsets.size() != keys.size()) {
    return all<Counts>(keys.size(), kInvalid);
  }
  if (keys.size() == 0) return {};
  return without_gil([&] {
    const auto client = store.client(call);
    if (client == nullptr) return all<Counts>(keys.size(), kNotSetUp);
    Counts answer(keys.size(), kInvalid);
    std::vector<store::RangeRead> reads;
    std::vector<std::size_t> positions;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      store::RangeRead read{.key = keys.views()[i], .destination = {}, .source_offsets = {}};
      bool fine = addresses[i].size() == sizes[i].size() && addresses[i].size() == source_offsets[i].size() && !addresses[i].empty();
      for (std::size_t j = 0; fine && j < sizes[i].size(); ++j) {
        if (sizes[i][j] == 0) continue;
        fine = is_memory(addresses[i][j], sizes[i][j]);
        read.destination.push_back(piece_at<transfer::MutableBytes>(addresses[i][j], sizes[i][j]));
        read.source_offsets.push_back(source_offsets[i][j]);
      }
      if (!fine) continue;
      reads.push_back(std::move(read));
      positions.push_back(i);
    }
    if (reads.empty()) return answer;
    const Counts counts = client->get_ranges(reads);
    for (std::size_t i = 0; i < counts.size(); ++i) answer[positions[i]] = counts[i];
    return answer;
  });
}

std::vector<std::optional<std::vector<std::byte>>> read_values(Store& store, std::string_view call,
                                                               std::span<const std::string_view> keys) {
  return without_gil([&] {
    std::vector<std::optional<std::vector<std::byte>>> values(keys.size());
    const auto client = store.client(call);
    if (client == nullptr || keys.empty()) return values;
    auto results = client->get(keys);
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (results[i].ok()) {
        values[i] = std::move(results[i]).value();
      } else if (results[i].code() != ErrorCode::kObjectNotFound) {
        log::error("{}: {}", call, results[i].status().to_string());
      }
    }
    return values;
  });
}

}  // namespace moonpool::python
