#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "python/bindings/gil.h"
#include "python/bindings/store.h"

namespace moonpool::python {

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using transfer::ConstBytes;

// What a client call that answers a number or a Status gives to Python.
template <typename Number>
std::int64_t number_or_code(const Result<Number>& result) {
  return result.ok() ? static_cast<std::int64_t>(*result) : result.status().number();
}

std::int32_t first_error(const Codes& codes) {
  const auto failed = std::find_if(codes.begin(), codes.end(), [](std::int32_t code) { return code < 0; });
  return failed == codes.end() ? 0 : *failed;
}

std::int32_t write_one(Store& store, std::string_view call, WriteMode mode, std::string_view key, std::span<const ConstBytes> pieces,
                       const ReplicateConfig& config) {
  return write_values(store, call, mode, {&key, 1}, {&pieces, 1}, config).front();
}

std::int32_t write_value(Store& store, std::string_view call, WriteMode mode, std::string_view key, const Bytes& value,
                         const ReplicateConfig& config) {
  const ConstBytes piece = value.view();
  return write_one(store, call, mode, key, {&piece, piece.empty() ? 0U : 1U}, config);
}

std::int32_t write_batch(Store& store, std::string_view call, WriteMode mode, const Keys& keys, const BytesList& values,
                         const ReplicateConfig& config) {
  if (keys.size() != values.items.size()) return kInvalid;
  std::vector<ConstBytes> pieces;
  std::vector<std::span<const ConstBytes>> spans;
  pieces.reserve(values.items.size());
  for (const Bytes& value : values.items) {
    pieces.push_back(value.view());
    spans.emplace_back(&pieces.back(), value.view().empty() ? 0U : 1U);
  }
  return first_error(write_values(store, call, mode, keys.views(), spans, config));
}

std::int32_t write_parts(Store& store, std::string_view call, WriteMode mode, std::string_view key, const nb::args& parts,
                         const ReplicateConfig& config) {
  BytesList held;
  if (!held.read(parts.ptr()))
    throw nb::type_error("parts must be objects with the buffer protocol: bytes, bytearray, memoryview, numpy arrays");
  std::vector<ConstBytes> pieces;
  for (const Bytes& part : held.items) {
    if (!part.view().empty()) pieces.push_back(part.view());
  }
  if (pieces.empty() && !key.empty()) return store.client(call) == nullptr ? kNotSetUp : 0;
  return write_one(store, call, mode, key, pieces, config);
}

// From memory by address; several pieces make one object.
std::int32_t write_from(Store& store, std::string_view call, WriteMode mode, std::string_view key, std::vector<ConstBytes> pieces,
                        const ReplicateConfig& config) {
  std::erase_if(pieces, [](const ConstBytes& piece) { return piece.empty(); });
  if (std::any_of(pieces.begin(), pieces.end(), [](const ConstBytes& piece) { return piece.data() == nullptr; })) return kInvalid;
  if (pieces.empty() && !key.empty()) return store.client(call) == nullptr ? kNotSetUp : 0;
  return write_one(store, call, mode, key, pieces, config);
}

ConstBytes bytes_at(std::uint64_t address, std::uint64_t size) { return {reinterpret_cast<const std::byte*>(address), size}; }

void bind_writes(nb::class_<Store>& store) {
  const auto config = [] { return "config"_a.sig("ReplicateConfig()") = ReplicateConfig(); };
  store
      .def(
          "put",
          [](Store& s, std::string_view key, const Bytes& value, const ReplicateConfig& config) {
            return write_value(s, "put", WriteMode::kPut, key, value, config);
          },
          "key"_a, "value"_a, config(),
          "Stores a copy of `value` (bytes, bytearray, memoryview, numpy array of any shape; its elements in C order). 0, also when the "
          "key was\n"
          "there already (its first value stays); -600 for an empty key or value, -200 when the pool is full, other negative codes "
          "otherwise.")
      .def(
          "upsert",
          [](Store& s, std::string_view key, const Bytes& value, const ReplicateConfig& config) {
            return write_value(s, "upsert", WriteMode::kUpsert, key, value, config);
          },
          "key"_a, "value"_a, config(), "As put, but replaces what is there; the old value stays readable until the new one is complete.")
      .def(
          "put_batch",
          [](Store& s, const Keys& keys, const BytesList& values, const ReplicateConfig& config) {
            return write_batch(s, "put_batch", WriteMode::kPut, keys, values, config);
          },
          "keys"_a, "values"_a, config(), "put of each pair. 0, or the first error; the other pairs are stored all the same.")
      .def(
          "upsert_batch",
          [](Store& s, const Keys& keys, const BytesList& values, const ReplicateConfig& config) {
            return write_batch(s, "upsert_batch", WriteMode::kUpsert, keys, values, config);
          },
          "keys"_a, "values"_a, config(), "upsert of each pair. 0, or the first error.")
      .def(
          "put_parts",
          [](Store& s, std::string_view key, const nb::args& parts, const ReplicateConfig& config) {
            return write_parts(s, "put_parts", WriteMode::kPut, key, parts, config);
          },
          "key"_a, "args"_a, config(), "Stores the parts one after the other as one object. No bytes at all: 0, and nothing is stored.")
      .def(
          "upsert_parts",
          [](Store& s, std::string_view key, const nb::args& parts, const ReplicateConfig& config) {
            return write_parts(s, "upsert_parts", WriteMode::kUpsert, key, parts, config);
          },
          "key"_a, "args"_a, config(), "As put_parts, but replaces what is there.")
      .def(
          "put_from",
          [](Store& s, std::string_view key, std::uint64_t address, std::uint64_t size, const ReplicateConfig& config) {
            return write_from(s, "put_from", WriteMode::kPut, key, {bytes_at(address, size)}, config);
          },
          "key"_a, "buffer_ptr"_a, "size"_a, config(),
          "Stores `size` bytes at address `buffer_ptr`, which must stay valid during the call. 0 bytes: 0, and nothing is stored.")
      .def(
          "upsert_from",
          [](Store& s, std::string_view key, std::uint64_t address, std::uint64_t size, const ReplicateConfig& config) {
            return write_from(s, "upsert_from", WriteMode::kUpsert, key, {bytes_at(address, size)}, config);
          },
          "key"_a, "buffer_ptr"_a, "size"_a, config(), "As put_from, but replaces what is there.")
      .def(
          "put_from_with_metadata",
          [](Store& s, std::string_view key, std::uint64_t address, std::uint64_t metadata, std::uint64_t size, std::uint64_t metadata_size,
             const ReplicateConfig& config) {
            return write_from(s, "put_from_with_metadata", WriteMode::kPut, key,
                              {bytes_at(metadata, metadata_size), bytes_at(address, size)}, config);
          },
          "key"_a, "buffer_ptr"_a, "metadata_buffer_ptr"_a, "size"_a, "metadata_size"_a, config(),
          "Stores the metadata's bytes, then the data's, as one object.");
}

void bind_batch_writes(nb::class_<Store>& store) {
  const auto config = [] { return "config"_a.sig("ReplicateConfig()") = ReplicateConfig(); };
  store
      .def(
          "batch_put_from",
          [](Store& s, const Keys& keys, const Numbers& addresses, const Numbers& sizes, const ReplicateConfig& config) {
            return write_memory(s, "batch_put_from", WriteMode::kPut, keys, addresses, sizes, config);
          },
          "keys"_a, "buffer_ptrs"_a, "sizes"_a, config(),
          "Stores sizes[i] bytes at buffer_ptrs[i] as keys[i]. One code per key: 0 or negative; lists of different lengths: -600 for each "
          "key.")
      .def(
          "batch_upsert_from",
          [](Store& s, const Keys& keys, const Numbers& addresses, const Numbers& sizes, const ReplicateConfig& config) {
            return write_memory(s, "batch_upsert_from", WriteMode::kUpsert, keys, addresses, sizes, config);
          },
          "keys"_a, "buffer_ptrs"_a, "sizes"_a, config(), "As batch_put_from, but replaces what is there.")
      .def(
          "batch_put_from_multi_buffers",
          [](Store& s, const Keys& keys, const LazyRows& addresses, const LazyRows& sizes, const ReplicateConfig& config) {
            return write_memory(s, "batch_put_from_multi_buffers", WriteMode::kPut, keys, addresses, sizes, config);
          },
          "keys"_a, "all_buffer_ptrs"_a, "all_sizes"_a, config(),
          "Stores the pieces (all_buffer_ptrs[i][j], all_sizes[i][j]) one after the other as keys[i]. One code per key: 0 or negative\n"
          "(-200: the pool is full).")
      .def(
          "_write_pieces",
          [](Store& s, const std::string& call, bool replace, const Keys& keys, const LazyRows& addresses, const LazyRows& sizes,
             const ReplicateConfig& config) {
            return write_memory(s, call, replace ? WriteMode::kUpsert : WriteMode::kPut, keys, addresses, sizes, config);
          },
          "call"_a, "replace"_a, "keys"_a, "all_buffer_ptrs"_a, "all_sizes"_a, "config"_a,
          "batch_put_from_multi_buffers, or the same replacing what is there, under the name of the call that it is for "
          "(mooncake/_tensors.py).");
}

void bind_removal(nb::class_<Store>& store) {
  store
      .def(
          "remove",
          [](Store& s, std::string_view key, bool force) {
            return without_gil([&] {
              const auto client = s.client("remove");
              return client == nullptr ? kNotSetUp : client->remove({&key, 1}, force).front();
            });
          },
          "key"_a, "force"_a = false,
          "0; -704 when there is no such key, -706 while it is leased to a reader (force=True removes it all the same).")
      .def(
          "batch_remove",
          [](Store& s, const Keys& keys, bool force) {
            return without_gil([&] {
              if (keys.size() == 0) return Codes();
              const auto client = s.client("batch_remove");
              return client == nullptr ? Codes(keys.size(), kNotSetUp) : client->remove(keys.views(), force);
            });
          },
          "keys"_a, "force"_a = false, "remove of each key; one code per key.")
      .def(
          "remove_by_regex",
          [](Store& s, std::string_view regex, bool force) {
            return without_gil([&]() -> std::int64_t {
              const auto client = s.client("remove_by_regex");
              return client == nullptr ? kNotSetUp : number_or_code(client->remove_matching(regex, force));
            });
          },
          "regex_pattern"_a, "force"_a = false, "Removes the keys in which the pattern is found. Their number, or a negative code.")
      .def(
          "remove_all",
          [](Store& s, bool force) {
            return without_gil([&]() -> std::int64_t {
              const auto client = s.client("remove_all");
              return client == nullptr ? kNotSetUp : number_or_code(client->remove_all(force));
            });
          },
          "force"_a = false,
          "Removes every object of this tenant that no reader holds (force=True: those too). Their number, or a negative code.");
}

void bind_memory(nb::class_<Store>& store) {
  store
      .def(
          "register_buffer",
          [](Store& s, std::uint64_t address, std::uint64_t size) {
            return without_gil([&]() -> std::int32_t {
              const auto client = s.client("register_buffer");
              if (client == nullptr) return kNotSetUp;
              if (address == 0 || size == 0) return kInvalid;
              return client->register_buffer(reinterpret_cast<const void*>(address), size).number();
            });
          },
          "buffer_ptr"_a, "size"_a,
          "Announces memory, the host's or a GPU's, that calls will use again and again; it must outlive its registration. 0 or negative.")
      .def(
          "unregister_buffer",
          [](Store& s, std::uint64_t address) {
            return without_gil([&]() -> std::int32_t {
              const auto client = s.client("unregister_buffer");
              return client == nullptr ? kNotSetUp : client->unregister_buffer(reinterpret_cast<const void*>(address)).number();
            });
          },
          "buffer_ptr"_a, "The end of register_buffer. 0 or negative.");
}

void bind_life(nb::class_<Store>& store) {
  store
      .def(
          "_open",
          [](Store& s, const std::string& hostname, const std::string& metadata, const std::string& master, std::uint64_t segment,
             std::uint64_t buffer, const std::string& protocol, const std::string& devices, const std::string& tenant,
             const transfer::rdma::Variables& rdma, const std::string& token, bool checksums, const std::string& paths,
             std::uint32_t operation_ms, std::uint32_t setup_ms, std::uint32_t handover_ms) {
            store::ClientOptions options;
            options.local_hostname = hostname;
            options.metadata_server = metadata;
            options.master_address = master;
            options.segment_size = segment;
            options.local_buffer_size = buffer;
            options.protocol = protocol;
            options.rdma.device_names = devices;
            options.tenant = tenant;
            options.cluster_token = token;
            options.checksums = checksums;
            options.paths = paths;
            options.operation_timeout = std::chrono::milliseconds(operation_ms);
            options.setup_timeout = std::chrono::milliseconds(setup_ms);
            options.handover_wait = std::chrono::milliseconds(handover_ms);
            return without_gil([&] { return s.open(std::move(options), rdma); });
          },
          nb::kw_only(), "local_hostname"_a, "metadata_server"_a, "master_address"_a, "segment_size"_a, "local_buffer_size"_a, "protocol"_a,
          "device_names"_a, "tenant"_a, "rdma"_a, "cluster_token"_a, "checksums"_a, "paths"_a, "operation_timeout_ms"_a,
          "setup_timeout_ms"_a, "handover_wait_ms"_a, "What setup() calls once its arguments are checked (mooncake/store.py).")
      .def("_is_open", [](Store& s) { return s.client_if_open() != nullptr; })
      .def(
          "close", [](Store& s) { return without_gil([&] { return s.close(); }); },
          "Takes this process's memory out of the pool and waits, bounded, for calls in flight. 0, also when nothing was set up; setup() "
          "may follow.")
      .def(
          "get_hostname",
          [](Store& s) {
            const auto client = s.client_if_open();
            return client == nullptr ? std::string() : client->hostname();
          },
          "'host:port' by which others reach this node, a name for preferred_segment; '' before setup.")
      .def(
          "health_check",
          [](Store& s) {
            return without_gil([&] {
              const auto client = s.client_if_open();
              if (client == nullptr) return 1;
              return client->ping().ok() ? 0 : 2;
            });
          },
          "0: fine; 1: not set up; 2: the master does not answer.");
}

}  // namespace

void bind_store(nb::module_& module) {
  nb::class_<Store> store(module, "MooncakeDistributedStore", "The client of the pool; see mooncake.store.");
  store.def(nb::init<>());
  bind_life(store);
  bind_memory(store);
  bind_writes(store);
  bind_batch_writes(store);
  bind_store_reads(store);
  bind_removal(store);
}

}  // namespace moonpool::python
