#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "base/logging.h"
#include "python/bindings/gil.h"
#include "python/bindings/store.h"

namespace moonpool::python {

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using Value = std::optional<std::vector<std::byte>>;

nb::bytes to_bytes(const Value& value) { return value ? nb::bytes(value->data(), value->size()) : nb::bytes("", 0); }

nb::object to_handle(std::optional<store::View>& view) { return view ? nb::cast(BufferHandle(std::move(*view))) : nb::none(); }

// An entry is nullopt where the key cannot be read.
std::vector<std::optional<store::View>> look_at_values(Store& store, std::string_view call, std::span<const std::string_view> keys) {
  return without_gil([&] {
    std::vector<std::optional<store::View>> views(keys.size());
    const auto client = store.client(call);
    if (client == nullptr || keys.empty()) return views;
    auto results = client->view(keys);
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (results[i].ok()) views[i] = std::move(results[i]).value();
    }
    return views;
  });
}

Codes exist(Store& store, std::string_view call, std::span<const std::string_view> keys) {
  return without_gil([&] {
    if (keys.empty()) return Codes();
    const auto client = store.client(call);
    return client == nullptr ? Codes(keys.size(), kNotSetUp) : client->exist(keys);
  });
}

std::int64_t size_of(Store& store, std::string_view key) {
  return without_gil([&]() -> std::int64_t {
    const auto client = store.client("get_size");
    if (client == nullptr) return kNotSetUp;
    const auto sizes = client->sizes({&key, 1});
    return sizes.front().ok() ? static_cast<std::int64_t>(*sizes.front()) : sizes.front().status().number();
  });
}

// One list per key; empty for keys that are not there.
std::vector<std::vector<ReplicaDescriptor>> describe(Store& store, std::string_view call, std::span<const std::string_view> keys) {
  return without_gil([&] {
    std::vector<std::vector<ReplicaDescriptor>> answer(keys.size());
    const auto client = store.client(call);
    if (client == nullptr || keys.empty()) return answer;
    const auto found = client->replicas(keys);
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (!found[i].ok()) {
        if (found[i].code() != ErrorCode::kObjectNotFound) log::error("{}: {}", call, found[i].status().to_string());
        continue;
      }
      for (const store::Replica& replica : *found[i]) answer[i].push_back({{replica.size, replica.address, replica.segment_name}});
    }
    return answer;
  });
}

using RangeCounts = std::vector<std::vector<Counts>>;

struct RangeTable {
  const Numbers& buffers;
  const NestedKeys& keys;
  const DeepNumbers& destination_offsets;
  const DeepNumbers& source_offsets;
  const DeepNumbers& sizes;

  [[nodiscard]] bool fits(std::size_t i) const {
    const std::size_t rows = keys.rows[i].size();
    return destination_offsets.rows[i].size() == rows && source_offsets.rows[i].size() == rows && sizes.rows[i].size() == rows;
  }
  [[nodiscard]] bool fits(std::size_t i, std::size_t j) const {
    const std::size_t count = sizes.rows[i][j].size();
    return buffers.values[i] != 0 && destination_offsets.rows[i][j].size() == count && source_offsets.rows[i][j].size() == count;
  }
};

// Every (buffer, key) pair is one read; all its ranges share its fate.
RangeCounts read_range_table(Store& store, const RangeTable& table) {
  const std::size_t buffers = table.buffers.size();
  RangeCounts answer(table.keys.rows.size());
  const bool shaped = table.keys.rows.size() == buffers && table.destination_offsets.rows.size() == buffers &&
                      table.source_offsets.rows.size() == buffers && table.sizes.rows.size() == buffers;
  std::vector<store::RangeRead> reads;
  std::vector<std::pair<std::size_t, std::size_t>> positions;
  for (std::size_t i = 0; i < table.keys.rows.size(); ++i) {
    const bool row_shaped = shaped && table.fits(i);
    for (std::size_t j = 0; j < table.keys.rows[i].size(); ++j) {
      answer[i].emplace_back(row_shaped ? table.sizes.rows[i][j].size() : 1, kInvalid);
      if (!row_shaped || !table.fits(i, j)) continue;
      store::RangeRead read{.key = table.keys.rows[i].views()[j], .destination = {}, .source_offsets = {}};
      for (std::size_t k = 0; k < table.sizes.rows[i][j].size(); ++k) {
        auto* start = reinterpret_cast<std::byte*>(table.buffers.values[i] + table.destination_offsets.rows[i][j][k]);
        read.destination.emplace_back(start, table.sizes.rows[i][j][k]);
        read.source_offsets.push_back(table.source_offsets.rows[i][j][k]);
      }
      reads.push_back(std::move(read));
      positions.emplace_back(i, j);
    }
  }
  if (reads.empty()) return answer;
  without_gil([&] {
    const auto client = store.client("get_into_ranges");
    const Counts counts = client == nullptr ? Counts(reads.size(), kNotSetUp) : client->get_ranges(reads);
    for (std::size_t r = 0; r < reads.size(); ++r) {
      const auto [i, j] = positions[r];
      for (std::size_t k = 0; k < answer[i][j].size(); ++k) {
        answer[i][j][k] = counts[r] < 0 ? counts[r] : static_cast<std::int64_t>(table.sizes.rows[i][j][k]);
      }
    }
  });
  return answer;
}

void bind_values(nb::class_<Store>& store) {
  store
      .def(
          "get",
          [](Store& s, std::string_view key) {
            return to_bytes(read_values(s, "get", {&key, 1}).front());
          },
          "arg0"_a, "The value, or b'' when there is none or it cannot be read intact.")
      .def(
          "get_batch",
          [](Store& s, const Keys& keys) {
            nb::list answer;
            for (const Value& value : read_values(s, "get_batch", keys.views())) answer.append(to_bytes(value));
            return answer;
          },
          "arg0"_a, nb::sig("def get_batch(self, arg0: list[str]) -> list[bytes]"), "get of each key.")
      .def(
          "get_buffer",
          [](Store& s, std::string_view key) {
            return to_handle(look_at_values(s, "get_buffer", {&key, 1}).front());
          },
          "arg0"_a, nb::sig("def get_buffer(self, arg0: str) -> BufferHandle | None"),
          "The value as a BufferHandle, without a copy where this process shares memory with its owner; None when there is none.")
      .def(
          "batch_get_buffer",
          [](Store& s, const Keys& keys) {
            nb::list answer;
            auto views = look_at_values(s, "batch_get_buffer", keys.views());
            for (auto& view : views) answer.append(to_handle(view));
            return answer;
          },
          "arg0"_a, nb::sig("def batch_get_buffer(self, arg0: list[str]) -> list[BufferHandle | None]"), "get_buffer of each key.");
}

void bind_reads_into_memory(nb::class_<Store>& store) {
  store
      .def(
          "get_into",
          [](Store& s, std::string_view key, std::uint64_t address, std::uint64_t size) {
            // One key, one buffer: the batch's shape with a single entry.
            if (address == 0 || size == 0) return s.client("get_into") == nullptr ? std::int64_t{kNotSetUp} : std::int64_t{kInvalid};
            const transfer::MutableBytes piece(reinterpret_cast<std::byte*>(address), size);
            const std::span<const transfer::MutableBytes> pieces(&piece, 1);
            return without_gil([&]() -> std::int64_t {
              const auto client = s.client("get_into");
              return client == nullptr ? kNotSetUp : client->get_into({&key, 1}, {&pieces, 1}, false).front();
            });
          },
          "key"_a, "buffer_ptr"_a, "size"_a,
          "Reads the object to address `buffer_ptr`, where there is room for `size` bytes. Bytes read; -704 when there is no such key, "
          "-600\n"
          "when it does not fit.")
      .def(
          "batch_get_into",
          [](Store& s, const Keys& keys, const Numbers& addresses, const Numbers& sizes) {
            return read_memory(s, "batch_get_into", keys, addresses, sizes);
          },
          "keys"_a, "buffer_ptrs"_a, "sizes"_a, "get_into of each key: bytes read or a negative code, one per key.")
      .def(
          "batch_get_into_multi_buffers",
          [](Store& s, const Keys& keys, const LazyRows& addresses, const LazyRows& sizes, bool) {
            return read_memory(s, "batch_get_into_multi_buffers", keys, addresses, sizes);
          },
          "keys"_a, "all_buffer_ptrs"_a, "all_sizes"_a, "prefer_alloc_in_same_node"_a = false,
          "Reads keys[i] into the pieces (all_buffer_ptrs[i][j], all_sizes[i][j]) in order; their sizes must add up to the object's, else "
          "-600.\n"
          "Bytes read or a negative code, one per key.")
      .def(
          "batch_get_into_multi_buffer_ranges",
          [](Store& s, const Keys& keys, const NestedNumbers& addresses, const NestedNumbers& sizes, const NestedNumbers& offsets) {
            return read_ranges(s, "batch_get_into_multi_buffer_ranges", keys, addresses, sizes, offsets);
          },
          "keys"_a, "all_buffer_ptrs"_a, "all_sizes"_a, "all_src_offsets"_a,
          "Reads the ranges of keys[i] that start at all_src_offsets[i][j] into the pieces (all_buffer_ptrs[i][j], all_sizes[i][j]).\n"
          "The sum of the sizes, or a negative code, one per key.")
      .def(
          "get_into_ranges",
          [](Store& s, const Numbers& buffers, const NestedKeys& keys, const DeepNumbers& destinations, const DeepNumbers& sources,
             const DeepNumbers& sizes) {
            return read_range_table(s, {buffers, keys, destinations, sources, sizes});
          },
          "buffer_ptrs"_a, "all_keys"_a, "all_dst_offsets"_a, "all_src_offsets"_a, "all_sizes"_a,
          "For buffer i and its key j: range k of sizes[i][j][k] bytes from the object's offset all_src_offsets[i][j][k] to the buffer's "
          "offset\n"
          "all_dst_offsets[i][j][k]. Bytes read or a negative code, in the shape of the sizes.");
}

void bind_queries(nb::class_<Store>& store) {
  store
      .def(
          "is_exist",
          [](Store& s, std::string_view key) {
            return exist(s, "is_exist", {&key, 1}).front();
          },
          "arg0"_a, "1: complete and readable, held for the lease's time; 0: not there; negative: the master could not be asked.")
      .def(
          "batch_is_exist", [](Store& s, const Keys& keys) { return exist(s, "batch_is_exist", keys.views()); }, "keys"_a,
          "is_exist of each key, in one question to the master; [] for [].")
      .def("get_size", &size_of, "arg0"_a, "Bytes, or -704 when there is no such key.")
      .def(
          "get_replica_desc",
          [](Store& s, std::string_view key) {
            return std::move(describe(s, "get_replica_desc", {&key, 1}).front());
          },
          "key"_a, "The complete copies of the object; [] when there are none.")
      .def(
          "batch_get_replica_desc",
          [](Store& s, const Keys& keys) {
            auto found = describe(s, "batch_get_replica_desc", keys.views());
            nb::dict answer;
            for (std::size_t i = 0; i < found.size(); ++i) {
              if (found[i].empty()) continue;
              const std::string_view key = keys.views()[i];
              answer[nb::str(key.data(), key.size())] = nb::cast(std::move(found[i]));
            }
            return answer;
          },
          "keys"_a, nb::sig("def batch_get_replica_desc(self, keys: list[str]) -> dict[str, list[ReplicaDescriptor]]"),
          "get_replica_desc of each key; keys that are not there are left out.")
      .def(
          "get_offload_rpc_read_count", [](Store&) { return 0; }, "Reads served from another node's disk: always 0 in this release.");
}

}  // namespace

void bind_store_reads(nb::class_<Store>& store) {
  bind_values(store);
  bind_reads_into_memory(store);
  bind_queries(store);
}

}  // namespace moonpool::python
