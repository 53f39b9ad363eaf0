#include "python/bindings/store.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

#include "base/logging.h"
#include "python/bindings/gil.h"
#include "store/part_pipeline.h"
#include "transfer/cuda/runtime.h"

namespace moonpool::python {

namespace {

bool is_memory(std::uint64_t address, std::uint64_t size) {
  return address != 0 && size <= std::numeric_limits<std::uint64_t>::max() - address;
}

const void* address(std::uint64_t number) { return reinterpret_cast<const void*>(number); }

template <typename Piece>
Piece piece_at(std::uint64_t address, std::uint64_t size) {
  using Byte = std::conditional_t<std::is_same_v<Piece, transfer::MutableBytes>, std::byte, const std::byte>;
  return Piece(reinterpret_cast<Byte*>(address), size);
}

// A row of one number, as a span, for the calls with one buffer per key.
std::span<const std::uint64_t> row(const Numbers& numbers, std::size_t i) { return std::span(numbers.values).subspan(i, 1); }
std::span<const std::uint64_t> row(const NestedNumbers& numbers, std::size_t i) { return numbers[i]; }

template <typename Values>
Values all(std::size_t count, std::int32_t code) {
  return Values(count, code);
}

// Group names belong to keys: the policy of a part of the keys, from the `first` on, and with entries left out, keeps only their names.
store::ReplicaPolicy policy_for(const ReplicateConfig& config, std::size_t first, const std::vector<std::size_t>& positions) {
  store::ReplicaPolicy policy = config.policy();
  if (policy.groups.empty()) return policy;
  std::vector<std::string> kept;
  kept.reserve(positions.size());
  for (const std::size_t position : positions) {
    kept.push_back(first + position < policy.groups.size() ? policy.groups[first + position] : std::string());
  }
  policy.groups = std::move(kept);
  return policy;
}

// Some of a call's keys, from the `first` on, with their rows.
template <typename Table>
struct Part {
  std::size_t first = 0;
  std::span<const std::string_view> keys;
  const Table& addresses;
  const Table& sizes;
};

template <typename Piece, typename Table>
Batch<Piece> make_batch(const Part<Table>& part) {
  std::size_t pieces = 0;
  for (std::size_t i = 0; i < part.keys.size(); ++i) pieces += row(part.addresses, i).size();
  Batch<Piece> batch(part.keys.size(), pieces);
  for (std::size_t i = 0; i < part.keys.size(); ++i) batch.add(i, part.keys[i], row(part.addresses, i), row(part.sizes, i));
  return batch;
}

// Answers to a batch, at the places of its entries.
template <typename Values, typename Piece>
void place(const Values& values, const Batch<Piece>& batch, std::span<typename Values::value_type> answer) {
  for (std::size_t i = 0; i < values.size(); ++i) answer[batch.positions()[i]] = values[i];
}

// A put or upsert of memory. `answer`: kInvalid for each key before.
struct Write {
  using Answer = Codes;
  WriteMode mode;
  const ReplicateConfig& config;

  template <typename Table>
  void operator()(store::Client& client, const Part<Table>& part, std::span<std::int32_t> answer) const {
    const auto batch = make_batch<transfer::ConstBytes>(part);
    if (batch.empty()) return;
    const store::ReplicaPolicy policy = policy_for(config, part.first, batch.positions());
    const bool replaces = mode == WriteMode::kUpsert;
    place(replaces ? client.upsert(batch.keys(), batch.spans(), policy) : client.put(batch.keys(), batch.spans(), policy), batch, answer);
  }
};

struct Read {
  using Answer = Counts;
  bool exact;

  template <typename Table>
  void operator()(store::Client& client, const Part<Table>& part, std::span<std::int64_t> answer) const {
    const auto batch = make_batch<transfer::MutableBytes>(part);
    if (!batch.empty()) place(client.get_into(batch.keys(), batch.spans(), exact), batch, answer);
  }
};

// A call as one batch.
template <typename Table, typename Work>
typename Work::Answer at_once(Store& store, std::string_view call, const Part<Table>& whole, const Work& work) {
  return without_gil([&] {
    const auto client = store.client(call);
    typename Work::Answer answer(whole.keys.size(), client == nullptr ? kNotSetUp : kInvalid);
    if (client != nullptr) work(*client, whole, std::span(answer));
    return answer;
  });
}

// Lists of one length, and a policy that can be met.
template <typename Table>
bool makes_sense(std::string_view call, const Keys& keys, const Table& addresses, const Table& sizes, const ReplicateConfig& config) {
  if (addresses.size() != keys.size() || sizes.size() != keys.size() || config.replica_num == 0) return false;
  if (!config.group_ids || config.group_ids->empty() || config.group_ids->size() == keys.size()) return true;
  log::error("{}: group_ids has {} names for {} keys: give one per key, or None", call, config.group_ids->size(), keys.size());
  return false;
}

// Rows that were read so far, from the row `first` on.
class RowsRead {
 public:
  RowsRead(const LazyRows& addresses, const LazyRows& sizes, std::size_t first)
      : all_addresses_(addresses), all_sizes_(sizes), first_(first), end_(first) {}

  // Reads on, one row at least, and no more than so many bytes if the next row has as many as the last one. With the interpreter lock.
  void read(std::uint64_t bytes) {
    for (std::uint64_t had = 0, last = 0; end_ < all_sizes_.size() && (last == 0 || had + last <= bytes); ++end_) {
      if (!addresses_.append(all_addresses_[end_])) refuse("all_buffer_ptrs");
      if (!sizes_.append(all_sizes_[end_])) refuse("all_sizes");
      const auto row = sizes_[sizes_.size() - 1];
      last = std::accumulate(row.begin(), row.end(), std::uint64_t{0});
      had += last;
    }
  }
  [[nodiscard]] bool is_last() const { return end_ == all_sizes_.size(); }
  [[nodiscard]] std::size_t first() const { return first_; }
  [[nodiscard]] std::size_t size() const { return end_ - first_; }
  // By the first piece: what lies elsewhere is moved rightly, too.
  [[nodiscard]] bool on_device() const {
    const auto* const cuda = transfer::cuda::Runtime::of_process();
    return cuda != nullptr && size() > 0 && !addresses_[0].empty() && cuda->device_of(address(addresses_[0].front())).has_value();
  }
  [[nodiscard]] Part<NestedNumbers> part(const Keys& keys) const {
    return {first_, keys.views().subspan(first_, size()), addresses_, sizes_};
  }

 private:
  [[noreturn]] void refuse(const char* name) const {
    throw nanobind::type_error(fmt::format("{}[{}] is no list of integers from 0 to 2^64 - 1", name, end_).c_str());
  }

  const LazyRows& all_addresses_;
  const LazyRows& all_sizes_;
  std::size_t first_, end_;
  NestedNumbers addresses_, sizes_;
};

// Bytes of a part: of the first ones few, so that they are soon on their way while others are made ready, of every kSteady-th twice as many
// as of those before it, up to so many that a launch and two calls of the master are little beside them, and that the device's staging
// memory takes. (A part with 4096 pieces takes 0.3 ms until its copy is queued, a third of it the master's.)
constexpr std::uint64_t kFirstPart = 2U << 20;
constexpr std::uint64_t kLargestPart = 16U << 20;
constexpr std::size_t kSteady = 2;

// A call with hundreds of pieces a key. With pieces in device memory it goes part by part, each as soon as its rows are read; a row of the
// wrong type ends it there, and keys before it have been served. Other memory keeps the CPU busy, and goes at once.
template <typename Work>
typename Work::Answer by_rows(Store& store, std::string_view call, const Keys& keys, const LazyRows& addresses, const LazyRows& sizes,
                              const Work& work) {
  RowsRead first(addresses, sizes, 0);
  first.read(kFirstPart);
  if (first.is_last() || !first.on_device()) {
    first.read(std::numeric_limits<std::uint64_t>::max());
    return at_once(store, call, first.part(keys), work);
  }
  const auto client = store.client(call);
  typename Work::Answer answer(keys.size(), client == nullptr ? kNotSetUp : kInvalid);
  if (client == nullptr) return answer;
  store::PartPipeline::Batch parts(client->pipeline());
  const auto add = [&](std::shared_ptr<const RowsRead> rows) {
    without_gil([&] {
      parts.wait_for_room();
      parts.add([&, rows = std::move(rows)] { work(*client, rows->part(keys), std::span(answer).subspan(rows->first(), rows->size())); });
    });
  };
  try {
    auto rows = std::make_shared<RowsRead>(std::move(first));
    std::uint64_t bytes = kFirstPart;
    for (std::size_t number = 1; true; ++number) {
      if (number % kSteady == 0) bytes = std::min(2 * bytes, kLargestPart);
      const std::size_t next = rows->first() + rows->size();
      const bool last = rows->is_last();
      add(std::move(rows));
      if (last) break;
      rows = std::make_shared<RowsRead>(addresses, sizes, next);
      rows->read(bytes);
    }
  } catch (...) {
    without_gil([&] { parts.wait(); });
    throw;
  }
  without_gil([&] { parts.wait(); });
  return answer;
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
  if (!makes_sense(call, keys, addresses, sizes, config)) return all<Codes>(keys.size(), kInvalid);
  if (keys.size() == 0) return {};
  return at_once(store, call, Part<Numbers>{0, keys.views(), addresses, sizes}, Write{mode, config});
}

Codes write_memory(Store& store, std::string_view call, WriteMode mode, const Keys& keys, const LazyRows& addresses, const LazyRows& sizes,
                   const ReplicateConfig& config) {
  if (!makes_sense(call, keys, addresses, sizes, config)) return all<Codes>(keys.size(), kInvalid);
  if (keys.size() == 0) return {};
  return by_rows(store, call, keys, addresses, sizes, Write{mode, config});
}

Counts read_memory(Store& store, std::string_view call, const Keys& keys, const Numbers& addresses, const Numbers& sizes) {
  if (addresses.size() != keys.size() || sizes.size() != keys.size()) return all<Counts>(keys.size(), kInvalid);
  if (keys.size() == 0) return {};
  return at_once(store, call, Part<Numbers>{0, keys.views(), addresses, sizes}, Read{.exact = false});
}

Counts read_memory(Store& store, std::string_view call, const Keys& keys, const LazyRows& addresses, const LazyRows& sizes) {
  if (addresses.size() != keys.size() || sizes.size() != keys.size()) return all<Counts>(keys.size(), kInvalid);
  if (keys.size() == 0) return {};
  return by_rows(store, call, keys, addresses, sizes, Read{.exact = true});
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
