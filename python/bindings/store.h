// What mooncake.store.MooncakeDistributedStore does in C++: argument checks, the shape of the answers, and the interpreter lock.
//
// Each data call reads its Python arguments (arguments.h), releases the lock, calls store::Client and turns the answer into the codes that
// engines expect: one per key, in the order of the keys. A key whose own arguments make no sense gets -600 and leaves its neighbours alone.
// Before setup and after close every call answers -600 (or the documented empty value) and says so once in the log.
// Threads: any; close() waits for calls in flight (bounded by the client). Owns the client.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "python/bindings/arguments.h"
#include "python/bindings/buffers.h"
#include "python/bindings/handle.h"
#include "python/bindings/replicate_config.h"
#include "store/client.h"
#include "transfer/rdma/settings.h"

namespace moonpool::python {

using Codes = std::vector<std::int32_t>;
using Counts = std::vector<std::int64_t>;

// -600. Before setup and after close calls answer it too, as the incumbent's do.
inline constexpr auto kInvalid = static_cast<std::int32_t>(ErrorCode::kInvalidParams);
inline constexpr auto kNotSetUp = kInvalid;

enum class WriteMode { kPut, kUpsert };

class Store {
 public:
  ~Store();  // as close(); entered with the interpreter lock held
  // 0 or a negative code; the reason goes to the log. `rdma`: the variables that set options.rdma, read with protocol "rdma" alone.
  std::int32_t open(store::ClientOptions options, const transfer::rdma::Variables& rdma);
  std::int32_t close();
  // Null when not set up; `call` is the name for the log line, written once until the next setup.
  [[nodiscard]] std::shared_ptr<store::Client> client(std::string_view call);
  // The same without a log line.
  [[nodiscard]] std::shared_ptr<store::Client> client_if_open() const { return handle_.get(); }

 private:
  Handle<store::Client> handle_;
  std::atomic<bool> warned_{false};
};

// The valid entries of a batch, side by side for the client, and where their answers belong. Capacity is fixed up front, because the
// spans point into `pieces_`.
template <typename Piece>
class Batch {
 public:
  Batch(std::size_t entries, std::size_t pieces) {
    keys_.reserve(entries);
    spans_.reserve(entries);
    positions_.reserve(entries);
    pieces_.reserve(pieces);
  }
  // Pieces of no bytes are left out. False, and nothing added, when a piece is no memory (null, or past the end of the address space).
  bool add(std::size_t position, std::string_view key, std::span<const std::uint64_t> addresses, std::span<const std::uint64_t> sizes);

  [[nodiscard]] std::span<const std::string_view> keys() const { return keys_; }
  [[nodiscard]] std::span<const std::span<const Piece>> spans() const { return spans_; }
  [[nodiscard]] const std::vector<std::size_t>& positions() const { return positions_; }
  [[nodiscard]] bool empty() const { return keys_.empty(); }

 private:
  std::vector<std::string_view> keys_;
  std::vector<Piece> pieces_;
  std::vector<std::span<const Piece>> spans_;
  std::vector<std::size_t> positions_;
};

// The calls, by shape. `call` is the Python name. All are entered with the interpreter lock held.
Codes write_values(Store& store, std::string_view call, WriteMode mode, std::span<const std::string_view> keys,
                   std::span<const std::span<const transfer::ConstBytes>> values, const ReplicateConfig& config);
Codes write_memory(Store& store, std::string_view call, WriteMode mode, const Keys& keys, const Numbers& addresses, const Numbers& sizes,
                   const ReplicateConfig& config);
Codes write_memory(Store& store, std::string_view call, WriteMode mode, const Keys& keys, const LazyRows& addresses, const LazyRows& sizes,
                   const ReplicateConfig& config);
Counts read_memory(Store& store, std::string_view call, const Keys& keys, const Numbers& addresses, const Numbers& sizes);
Counts read_memory(Store& store, std::string_view call, const Keys& keys, const LazyRows& addresses, const LazyRows& sizes);
Counts read_ranges(Store& store, std::string_view call, const Keys& keys, const NestedNumbers& addresses, const NestedNumbers& sizes,
                   const NestedNumbers& source_offsets);
// Whole values; an entry is nullopt where the key cannot be read.
std::vector<std::optional<std::vector<std::byte>>> read_values(Store& store, std::string_view call, std::span<const std::string_view> keys);

void bind_store(nanobind::module_& module);
// The calls that read, of the same class; in a file of their own for its length.
void bind_store_reads(nanobind::class_<Store>& store);

}  // namespace moonpool::python
