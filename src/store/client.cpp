#include "store/client.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>

#include "base/logging.h"
#include "store/client_runtime.h"
#include "store/part_pipeline.h"

namespace moonpool::store {

namespace {

constexpr auto kClosedCode =
    static_cast<std::int32_t>(ErrorCode::kInvalidParams);  // what Mooncake answers before setup() and after close()

Status closed_status() { return {ErrorCode::kInvalidParams, "the store client is closed; call setup() again"}; }

std::uint64_t total(std::span<const MutableBytes> pieces) {
  return std::accumulate(pieces.begin(), pieces.end(), std::uint64_t{0},
                         [](std::uint64_t sum, MutableBytes piece) { return sum + piece.size(); });
}

// The first `length` bytes of the pieces.
GetPath::Destination first_bytes(std::span<const MutableBytes> pieces, std::uint64_t length) {
  GetPath::Destination cut;
  cut.reserve(pieces.size());
  for (const auto piece : pieces) {
    if (length == 0) break;
    const auto taken = piece.first(std::min<std::uint64_t>(piece.size(), length));
    if (!taken.empty()) cut.push_back(taken);
    length -= taken.size();
  }
  return cut;
}

// Errors that a person should hear of: everything but a plain miss or a wrong argument.
bool worth_a_line(ErrorCode code) {
  return code != ErrorCode::kOk && code != ErrorCode::kObjectNotFound && code != ErrorCode::kInvalidParams &&
         code != ErrorCode::kInvalidKey;
}

template <typename T>
void log_first(std::string_view operation, const std::vector<Result<T>>& results) {
  const auto failed = std::find_if(results.begin(), results.end(), [](const auto& result) { return worth_a_line(result.code()); });
  if (failed == results.end()) return;
  const auto count = std::count_if(failed, results.end(), [](const auto& result) { return worth_a_line(result.code()); });
  log::error("{} failed for {} of {} key(s), the first with {}", operation, count, results.size(), failed->status().to_string());
}

std::vector<std::int64_t> to_numbers(const std::vector<Result<std::uint64_t>>& results) {
  std::vector<std::int64_t> numbers;
  numbers.reserve(results.size());
  for (const auto& result : results) numbers.push_back(result ? static_cast<std::int64_t>(*result) : public_code(result.code()));
  return numbers;
}

}  // namespace

class Client::Impl {
 public:
  explicit Impl(ClientOptions options) : runtime(std::move(options)) {}

  [[nodiscard]] Deadline deadline() const { return Deadline::after(runtime.options().operation_timeout); }
  std::vector<std::int32_t> put(const PutPath::Batch& batch);
  std::vector<std::int64_t> get(std::string_view operation, std::span<const std::string_view> keys, const GetPath::Plan& plan);

  ClientRuntime runtime;
  std::mutex buffers_mutex;                         // guards buffers
  std::map<std::uintptr_t, std::uint64_t> buffers;  // registered: address -> size
  PartPipeline pipeline;
};

Result<std::unique_ptr<Client>> Client::create(ClientOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  if (Status status = impl->runtime.open(); !status.ok()) return status;
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;
void Client::close() { impl_->runtime.close(); }

std::vector<std::int32_t> Client::Impl::put(const PutPath::Batch& batch) {
  const auto all = [&](ErrorCode code) { return std::vector<std::int32_t>(batch.keys.size(), static_cast<std::int32_t>(code)); };
  const auto pass = runtime.enter();
  if (!pass) return all(ErrorCode::kInvalidParams);
  if (batch.keys.empty()) return {};
  if (batch.sources.size() != batch.keys.size() || batch.policy.replica_num == 0 ||
      (!batch.policy.groups.empty() && batch.policy.groups.size() != batch.keys.size())) {
    return all(ErrorCode::kInvalidParams);
  }
  if (runtime.options().local_buffer_size == 0) {
    log::error(
        "put: this client was set up with local_buffer_size 0, which makes it a pure server of memory; give it a local buffer to put "
        "objects");
    return all(ErrorCode::kInvalidParams);
  }
  return runtime.puts().put(batch, deadline());
}

std::vector<std::int32_t> Client::put(std::span<const std::string_view> keys, std::span<const std::span<const ConstBytes>> sources,
                                      const ReplicaPolicy& policy) {
  return impl_->put({keys, sources, policy, false});
}

std::vector<std::int32_t> Client::upsert(std::span<const std::string_view> keys, std::span<const std::span<const ConstBytes>> sources,
                                         const ReplicaPolicy& policy) {
  return impl_->put({keys, sources, policy, true});
}

std::vector<std::int64_t> Client::Impl::get(std::string_view operation, std::span<const std::string_view> keys, const GetPath::Plan& plan) {
  const auto pass = runtime.enter();
  if (!pass) return std::vector<std::int64_t>(keys.size(), kClosedCode);
  if (keys.empty()) return {};
  const auto results = runtime.gets().get(keys, plan, deadline());
  log_first(operation, results);
  return to_numbers(results);
}

std::vector<std::int64_t> Client::get_into(std::span<const std::string_view> keys,
                                           std::span<const std::span<const MutableBytes>> destinations, bool exact) {
  if (destinations.size() != keys.size()) return std::vector<std::int64_t>(keys.size(), kClosedCode);
  const auto plan = [&](std::size_t index, std::uint64_t size) -> Result<GetPath::Parts> {
    const std::uint64_t room = total(destinations[index]);
    if (exact ? room != size : room < size) {
      return {ErrorCode::kInvalidParams, fmt::format("the object has {} bytes, the destination {}", size, room)};
    }
    return GetPath::Parts{{0, size, first_bytes(destinations[index], size)}};
  };
  return impl_->get("get_into", keys, plan);
}

std::vector<std::int64_t> Client::get_ranges(std::span<const RangeRead> reads) {
  std::vector<std::string_view> keys;
  keys.reserve(reads.size());
  for (const auto& read : reads) keys.push_back(read.key);
  const auto plan = [&](std::size_t index, std::uint64_t size) -> Result<GetPath::Parts> {
    const RangeRead& read = reads[index];
    if (read.destination.size() != read.source_offsets.size())
      return {ErrorCode::kInvalidParams, "one source offset per destination is needed"};
    GetPath::Parts parts;
    for (std::size_t i = 0; i < read.destination.size(); ++i) {
      const std::uint64_t start = read.source_offsets[i];
      const std::uint64_t length = read.destination[i].size();
      if (start > size || length > size - start) {
        return {ErrorCode::kInvalidParams, fmt::format("bytes {} to {} of an object of {} bytes", start, start + length, size)};
      }
      if (length > 0) parts.push_back({start, length, {read.destination[i]}});
    }
    return parts;
  };
  return impl_->get("get_ranges", keys, plan);
}

std::vector<Result<std::vector<std::byte>>> Client::get(std::span<const std::string_view> keys) {
  std::vector<Result<std::vector<std::byte>>> values;
  values.reserve(keys.size());
  const auto pass = impl_->runtime.enter();
  if (!pass) {
    values.assign(keys.size(), closed_status());
    return values;
  }
  std::vector<std::vector<std::byte>> memory(keys.size());
  const auto plan = [&](std::size_t index, std::uint64_t size) -> Result<GetPath::Parts> {
    try {
      memory[index].resize(size);
    } catch (const std::exception&) {
      return {ErrorCode::kBufferOverflow, fmt::format("no memory for an object of {} bytes", size)};
    }
    return GetPath::Parts{{0, size, {memory[index]}}};
  };
  const auto results = impl_->runtime.gets().get(keys, plan, impl_->deadline());
  log_first("get", results);
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i]) {
      values.emplace_back(std::move(memory[i]));
    } else {
      values.emplace_back(results[i].status());
    }
  }
  return values;
}

std::vector<Result<View>> Client::view(std::span<const std::string_view> keys) {
  const auto pass = impl_->runtime.enter();
  if (!pass) {
    std::vector<Result<View>> closed;
    for (std::size_t i = 0; i < keys.size(); ++i) closed.emplace_back(closed_status());
    return closed;
  }
  auto views = impl_->runtime.views().view(keys, impl_->deadline());
  log_first("get_buffer", views);
  return views;
}

std::vector<std::int32_t> Client::exist(std::span<const std::string_view> keys) {
  const auto pass = impl_->runtime.enter();
  if (!pass) return std::vector<std::int32_t>(keys.size(), kClosedCode);
  const ClientOptions& options = impl_->runtime.options();
  const std::string node = impl_->runtime.node().to_bytes();
  const std::string tenant = tenant_on_wire(options.tenant);
  net::lean::ExistRequest request;
  request.node_id = node;
  request.tenant = tenant;
  request.wait_ms = static_cast<std::uint32_t>(std::max<std::int64_t>(0, options.handover_wait.count()));
  std::vector<std::int32_t> found(keys.size(), 0);  // what can be no key is in no pool
  request.key.reserve(keys.size());
  for (const auto key : keys) {
    if (check_key(key) == ErrorCode::kOk) request.key.push_back(key);
  }
  const std::size_t asked = request.key.size();
  if (asked == 0) return found;
  // The master's wait is part of the answer's time, not of the network's.
  const auto reply = impl_->runtime.master().exist(request, Deadline::after(options.operation_timeout + options.handover_wait));
  const bool answered = reply.ok() && (*reply)->status.size() == asked;
  if (!answered) log::error("exist of {} key(s): {}", asked, reply.ok() ? "the master's answer is malformed" : reply.status().to_string());
  const auto failure = reply.ok() ? static_cast<std::int32_t>(ErrorCode::kRpcFail) : public_code(reply.code());
  for (std::size_t i = 0, next = 0; i < keys.size(); ++i) {
    if (asked == keys.size() || check_key(keys[i]) == ErrorCode::kOk) found[i] = answered ? (*reply)->status[next++] : failure;
  }
  return found;
}

namespace {
// Valid keys are located, the others answered on the spot.
std::vector<Result<GetPath::Location>> locate_valid(ClientRuntime& runtime, std::string_view operation,
                                                    std::span<const std::string_view> keys, Deadline deadline) {
  std::vector<Result<GetPath::Location>> all(keys.size(), Status{ErrorCode::kInvalidParams, "a key has 1 to 65536 bytes"});
  std::vector<std::string_view> valid;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (const ErrorCode code = check_key(keys[i]); code == ErrorCode::kOk) {
      valid.push_back(keys[i]);
      places.push_back(i);
    } else {
      all[i] = Status{code, "a key has 1 to 65536 bytes"};
    }
  }
  if (valid.empty()) return all;
  auto located = runtime.gets().locate(valid, deadline);
  for (std::size_t i = 0; i < places.size(); ++i) all[places[i]] = std::move(located[i]);
  log_first(operation, all);
  return all;
}
}  // namespace

std::vector<Result<std::uint64_t>> Client::sizes(std::span<const std::string_view> keys) {
  const auto pass = impl_->runtime.enter();
  if (!pass) return std::vector<Result<std::uint64_t>>(keys.size(), closed_status());
  std::vector<Result<std::uint64_t>> sizes;
  for (const auto& location : locate_valid(impl_->runtime, "get_size", keys, impl_->deadline())) {
    if (location) {
      sizes.emplace_back(location->size);
    } else {
      sizes.emplace_back(location.status());
    }
  }
  return sizes;
}

std::vector<Result<std::vector<Replica>>> Client::replicas(std::span<const std::string_view> keys) {
  const auto pass = impl_->runtime.enter();
  if (!pass) return std::vector<Result<std::vector<Replica>>>(keys.size(), closed_status());
  std::vector<Result<std::vector<Replica>>> all;
  for (const auto& location : locate_valid(impl_->runtime, "get_replica_desc", keys, impl_->deadline())) {
    if (!location) {
      all.emplace_back(location.status());
      continue;
    }
    std::vector<Replica> replicas;
    for (const auto& copy : location->copies) replicas.push_back({copy.segment->name, copy.segment->base + copy.offset, location->size});
    all.emplace_back(std::move(replicas));
  }
  return all;
}

std::vector<std::int32_t> Client::remove(std::span<const std::string_view> keys, bool force) {
  const auto pass = impl_->runtime.enter();
  if (!pass) return std::vector<std::int32_t>(keys.size(), kClosedCode);
  wire::RemoveRequest request;
  request.set_tenant(tenant_on_wire(impl_->runtime.options().tenant));
  request.set_force(force);
  std::vector<std::int32_t> codes(keys.size());
  std::vector<std::size_t> asked;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    codes[i] = static_cast<std::int32_t>(check_key(keys[i]));
    if (codes[i] != 0) continue;
    request.add_key(keys[i].data(), keys[i].size());
    asked.push_back(i);
  }
  if (asked.empty()) return codes;
  const auto removed = impl_->runtime.master().remove(request, impl_->deadline());
  const bool answered = removed.ok() && removed->reply.status_size() == static_cast<int>(asked.size());
  if (!answered)
    log::error("remove of {} key(s): {}", asked.size(), removed.ok() ? "the master's answer is malformed" : removed.status().to_string());
  if (removed.ok()) impl_->runtime.membership().fenced().remember(removed->reply.fenced());
  for (std::size_t i = 0; i < asked.size(); ++i) {
    std::int32_t& code = codes[asked[i]];
    if (!answered) {
      code = removed.ok() ? static_cast<std::int32_t>(ErrorCode::kRpcFail) : public_code(removed.code());
      continue;
    }
    code = public_code(static_cast<ErrorCode>(removed->reply.status(static_cast<int>(i))));
    // The first request may have removed it before its answer was lost.
    if (removed->repeated && code == static_cast<std::int32_t>(ErrorCode::kObjectNotFound)) code = 0;
  }
  return codes;
}

namespace {
Result<std::uint64_t> remove_some(ClientRuntime& runtime, wire::RemoveMatchingRequest request, Deadline deadline) {
  const auto pass = runtime.enter();
  if (!pass) return closed_status();
  request.set_tenant(tenant_on_wire(runtime.options().tenant));
  const auto reply = runtime.master().remove_matching(request, deadline);
  if (!reply) return reply.status();
  runtime.membership().fenced().remember(reply->fenced());
  return reply->removed();
}
}  // namespace

Result<std::uint64_t> Client::remove_matching(std::string_view regex, bool force) {
  wire::RemoveMatchingRequest request;
  request.set_regex(std::string(regex));
  request.set_force(force);
  return remove_some(impl_->runtime, std::move(request), impl_->deadline());
}

Result<std::uint64_t> Client::remove_all(bool force) {
  wire::RemoveMatchingRequest request;
  request.set_all(true);
  request.set_force(force);
  return remove_some(impl_->runtime, std::move(request), impl_->deadline());
}

Status Client::register_buffer(const void* address, std::uint64_t size) {
  const auto start = reinterpret_cast<std::uintptr_t>(address);
  if (address == nullptr || size == 0 || size > UINTPTR_MAX - start) {
    return {ErrorCode::kInvalidParams, fmt::format("register_buffer: {} bytes at {:#x} are no buffer", size, start)};
  }
  // Gets write into it.
  MOONPOOL_RETURN_IF_ERROR(impl_->runtime.register_buffer({static_cast<std::byte*>(const_cast<void*>(address)), size}));
  const std::scoped_lock lock(impl_->buffers_mutex);
  impl_->buffers[start] = size;
  return {};
}

Status Client::unregister_buffer(const void* address) {
  bool known = false;
  {
    const std::scoped_lock lock(impl_->buffers_mutex);
    known = impl_->buffers.erase(reinterpret_cast<std::uintptr_t>(address)) > 0;
  }
  if (known) return impl_->runtime.unregister_buffer(address, impl_->deadline());
  return {ErrorCode::kInvalidParams,
          fmt::format("unregister_buffer: no buffer is registered at {:#x}", reinterpret_cast<std::uintptr_t>(address))};
}

PartPipeline& Client::pipeline() { return impl_->pipeline; }

std::string Client::hostname() const { return impl_->runtime.hostname(); }

Status Client::ping() {
  const auto pass = impl_->runtime.enter();
  if (!pass) return closed_status();
  return impl_->runtime.master().ping(impl_->deadline());
}

}  // namespace moonpool::store
