#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <dlfcn.h>
#include <unistd.h>

#include <cstring>

#include "base/logging.h"
#include "python/bindings/engine.h"
#include "python/bindings/gil.h"
#include "transfer/cuda/runtime.h"

namespace moonpool::python {

namespace nb = nanobind;
using nb::literals::operator""_a;
using transfer::Notification;
using transfer::Opcode;
using transfer::Piece;

namespace {

constexpr std::int32_t kBadArgument = -1;
constexpr std::int32_t kNotRegistered = -3;
constexpr std::int32_t kOverlaps = -7;

std::int32_t engine_code(std::string_view call, const Status& status) {
  if (status.ok()) return 0;
  log::error("TransferEngine.{}: {}", call, status.to_string());
  switch (status.code()) {
    case ErrorCode::kSegmentAlreadyExists:
      return kOverlaps;
    case ErrorCode::kSegmentNotFound:
    case ErrorCode::kObjectNotFound:
      return kNotRegistered;
    default:
      return kBadArgument;
  }
}

// nullopt when the lists differ in length.
std::optional<std::vector<Piece>> to_pieces(const Numbers& local, const Numbers& remote, const Numbers& lengths) {
  if (local.size() != remote.size() || local.size() != lengths.size()) {
    log::error("TransferEngine: {} buffers, {} peer addresses and {} lengths: the lists must be equally long", local.size(), remote.size(),
               lengths.size());
    return std::nullopt;
  }
  std::vector<Piece> pieces;
  pieces.reserve(local.size());
  for (std::size_t i = 0; i < local.size(); ++i) pieces.push_back({local.values[i], remote.values[i], lengths.values[i]});
  return pieces;
}

std::int32_t transfer_batch(Engine& engine, std::string_view peer, Opcode opcode, const Numbers& local, const Numbers& remote,
                            const Numbers& lengths, const Notification* notify) {
  auto pieces = to_pieces(local, remote, lengths);
  if (!pieces) return kBadArgument;
  return without_gil([&] { return engine.transfer(peer, opcode, std::move(*pieces), notify); });
}

std::uint64_t submit_batch(Engine& engine, std::string_view peer, Opcode opcode, const Numbers& local, const Numbers& remote,
                           const Numbers& lengths) {
  auto pieces = to_pieces(local, remote, lengths);
  if (!pieces) return 0;
  return without_gil([&] { return engine.submit(peer, opcode, std::move(*pieces)); });
}

// Calls `member` of the running engine without the interpreter lock.
template <typename Call>
std::int32_t on_engine(Engine& engine, std::string_view name, Call call) {
  return without_gil([&] {
    const auto running = engine.get(name);
    return running == nullptr ? kBadArgument : engine_code(name, call(*running));
  });
}

// All of them, whatever becomes of one; the code of the first failure.
std::int32_t unregister(Engine& engine, std::string_view name, std::span<const std::uint64_t> addresses) {
  return on_engine(engine, name, [&](auto& running) {
    Status first;
    for (const std::uint64_t address : addresses) {
      Status status = running.unregister_memory(address);
      if (status.code() == ErrorCode::kInvalidParams) status = Status(ErrorCode::kSegmentNotFound, status.message());
      if (!status.ok() && first.ok()) first = std::move(status);
    }
    return first;
  });
}

// Also before anything of this process has loaded the driver. Loading it alone starts nothing.
bool cuda_is_usable() {
  if (transfer::cuda::Runtime::of_process() != nullptr) return true;
  if (::access("/dev/nvidiactl", R_OK | W_OK) != 0) return false;
  void* const driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return false;
  ::dlclose(driver);
  return true;
}

void bind_life(nb::class_<Engine>& engine) {
  engine
      .def(
          "_initialize",
          [](Engine& e, const std::string& hostname, const std::string& metadata, const std::string& protocol, const std::string& devices,
             const transfer::rdma::Variables& rdma, const std::string& paths, const std::string& token, std::uint32_t timeout_ms) {
            transfer::EngineOptions options;
            options.name = hostname;
            options.metadata_url = metadata;
            options.protocol = protocol;
            options.rdma.device_names = devices;
            options.paths = paths;
            options.cluster_token = token;
            options.timeout = std::chrono::milliseconds(timeout_ms);
            return without_gil([&] { return e.initialize(std::move(options), rdma); });
          },
          nb::kw_only(), "hostname"_a, "metadata"_a, "protocol"_a, "devices"_a, "rdma"_a, "paths"_a, "cluster_token"_a, "timeout_ms"_a)
      .def(
          "_nics",
          [](Engine& e) {
            const auto running = e.get_if_open();
            std::vector<std::pair<std::string, std::int32_t>> nics;
            if (running == nullptr) return nics;
            for (auto& nic : running->nics()) nics.emplace_back(std::move(nic.name), nic.numa_node);
            return nics;
          },
          "Names and NUMA nodes (-1: unknown) of the network cards that transfers use; none with tcp.")
      .def("_shut_down", [](Engine& e) { without_gil([&] { e.shut_down(); }); })
      .def(
          "get_rpc_port",
          [](Engine& e) {
            const auto running = e.get("get_rpc_port");
            return running == nullptr ? -1 : static_cast<std::int32_t>(running->port());
          },
          "The port on which peers reach this engine: with the host name it makes the session id 'host:port'. -1 before initialize().");
}

void bind_memory(nb::class_<Engine>& engine) {
  engine
      .def(
          "register_memory",
          [](Engine& e, std::uint64_t address, std::uint64_t capacity, std::string_view location) {
            return on_engine(e, "register_memory", [&](auto& running) { return running.register_memory(address, capacity, location); });
          },
          "buffer_addr"_a, "capacity"_a, "location"_a = "*",
          "Lets peers read and write `capacity` bytes at `buffer_addr`, which must outlive the registration. 0; -1 bad range, -7 overlap.")
      .def(
          "unregister_memory",
          [](Engine& e, std::uint64_t address) {
            return unregister(e, "unregister_memory", {&address, 1});
          },
          "arg0"_a, "0, or -3 when nothing is registered at that address.")
      .def(
          "batch_register_memory",
          [](Engine& e, const Numbers& addresses, const Numbers& capacities, std::string_view location) {
            if (addresses.size() != capacities.size()) return kBadArgument;
            return on_engine(e, "batch_register_memory", [&](auto& running) -> Status {
              for (std::size_t i = 0; i < addresses.size(); ++i) {
                Status status = running.register_memory(addresses.values[i], capacities.values[i], location);
                if (status.ok()) continue;
                while (i-- > 0) static_cast<void>(running.unregister_memory(addresses.values[i]));
                return status;
              }
              return {};
            });
          },
          "buffer_addresses"_a, "capacities"_a, "location"_a = "*", "register_memory of each pair; all of them or none.")
      .def(
          "batch_unregister_memory",
          [](Engine& e, const Numbers& addresses) { return unregister(e, "batch_unregister_memory", addresses.values); }, "arg0"_a,
          "unregister_memory of each; the first error, after all were tried.")
      .def(
          "allocate_managed_buffer", [](Engine& e, std::uint64_t size) { return without_gil([&] { return e.allocate_managed(size); }); },
          "arg0"_a, "Memory of that many bytes, registered already. Its address, or 0.")
      .def(
          "free_managed_buffer",
          [](Engine& e, std::uint64_t address, std::uint64_t) { return without_gil([&] { return e.free_managed(address); }); }, "arg0"_a,
          "arg1"_a, "The end of allocate_managed_buffer: (address, size). 0 or -1.");
}

void bind_sync(nb::class_<Engine>& engine) {
  const auto one = [](std::uint64_t local, std::uint64_t remote, std::uint64_t length) {
    return std::vector<Piece>{{local, remote, length}};
  };
  engine
      .def(
          "transfer_sync",
          [one](Engine& e, std::string_view peer, std::uint64_t local, std::uint64_t remote, std::uint64_t length, Opcode opcode,
                const Notification* notify,
                std::string_view) { return without_gil([&] { return e.transfer(peer, opcode, one(local, remote, length), notify); }); },
          "target_hostname"_a, "buffer"_a, "peer_buffer_address"_a, "length"_a, "opcode"_a, "notify"_a.none() = nb::none(),
          "transport_hint"_a = "",
          "Moves `length` bytes between `buffer` here and `peer_buffer_address` there; both must be registered. 0 once they have arrived, "
          "else -1.")
      .def(
          "transfer_sync_read",
          [one](Engine& e, std::string_view peer, std::uint64_t local, std::uint64_t remote, std::uint64_t length, std::string_view) {
            return without_gil([&] { return e.transfer(peer, Opcode::kRead, one(local, remote, length), nullptr); });
          },
          "target_hostname"_a, "buffer"_a, "peer_buffer_address"_a, "length"_a, "transport_hint"_a = "",
          "transfer_sync from the peer to here.")
      .def(
          "transfer_sync_write",
          [one](Engine& e, std::string_view peer, std::uint64_t local, std::uint64_t remote, std::uint64_t length, std::string_view) {
            return without_gil([&] { return e.transfer(peer, Opcode::kWrite, one(local, remote, length), nullptr); });
          },
          "target_hostname"_a, "buffer"_a, "peer_buffer_address"_a, "length"_a, "transport_hint"_a = "",
          "transfer_sync from here to the peer.")
      .def(
          "batch_transfer_sync",
          [](Engine& e, std::string_view peer, const Numbers& local, const Numbers& remote, const Numbers& lengths, Opcode opcode,
             const Notification* notify, std::string_view) { return transfer_batch(e, peer, opcode, local, remote, lengths, notify); },
          "target_hostname"_a, "buffers"_a, "peer_buffer_addresses"_a, "lengths"_a, "opcode"_a, "notify"_a.none() = nb::none(),
          "transport_hint"_a = "", "All pieces in one transfer. 0 once all have arrived, else -1.")
      .def(
          "batch_transfer_sync_read",
          [](Engine& e, std::string_view peer, const Numbers& local, const Numbers& remote, const Numbers& lengths, std::string_view) {
            return transfer_batch(e, peer, Opcode::kRead, local, remote, lengths, nullptr);
          },
          "target_hostname"_a, "buffers"_a, "peer_buffer_addresses"_a, "lengths"_a, "transport_hint"_a = "",
          "Reads all pieces from the peer.")
      .def(
          "batch_transfer_sync_write",
          [](Engine& e, std::string_view peer, const Numbers& local, const Numbers& remote, const Numbers& lengths, std::string_view) {
            return transfer_batch(e, peer, Opcode::kWrite, local, remote, lengths, nullptr);
          },
          "target_hostname"_a, "buffers"_a, "peer_buffer_addresses"_a, "lengths"_a, "transport_hint"_a = "",
          "Writes all pieces to the peer.");
}

void bind_async(nb::class_<Engine>& engine) {
  engine
      .def(
          "batch_transfer_async",
          [](Engine& e, std::string_view peer, const Numbers& local, const Numbers& remote, const Numbers& lengths, Opcode opcode,
             std::string_view) { return submit_batch(e, peer, opcode, local, remote, lengths); },
          "target_hostname"_a, "buffers"_a, "peer_buffer_addresses"_a, "lengths"_a, "opcode"_a, "transport_hint"_a = "",
          "Starts a transfer in the background: its id, or 0. The local memory must stay as it is until it has ended.")
      .def(
          "batch_transfer_async_read",
          [](Engine& e, std::string_view peer, const Numbers& local, const Numbers& remote, const Numbers& lengths, std::string_view) {
            return submit_batch(e, peer, Opcode::kRead, local, remote, lengths);
          },
          "target_hostname"_a, "buffers"_a, "peer_buffer_addresses"_a, "lengths"_a, "transport_hint"_a = "",
          "batch_transfer_async, reading.")
      .def(
          "batch_transfer_async_write",
          [](Engine& e, std::string_view peer, const Numbers& local, const Numbers& remote, const Numbers& lengths, std::string_view) {
            return submit_batch(e, peer, Opcode::kWrite, local, remote, lengths);
          },
          "target_hostname"_a, "buffers"_a, "peer_buffer_addresses"_a, "lengths"_a, "transport_hint"_a = "",
          "batch_transfer_async, writing.")
      .def(
          "get_batch_transfer_status", [](Engine& e, const Numbers& ids) { return without_gil([&] { return e.wait_all(ids.values); }); },
          "arg0"_a, "Waits for all these transfers to end. 0, or -1 when one of them failed or is unknown.")
      .def(
          "transfer_submit_write",
          [](Engine& e, std::string_view peer, std::uint64_t local, std::uint64_t remote, std::uint64_t length,
             std::string_view) -> std::int64_t {
            return without_gil([&]() -> std::int64_t {
              const std::uint64_t id = e.submit(peer, Opcode::kWrite, {{local, remote, length}});
              return id == 0 ? -1 : static_cast<std::int64_t>(id);
            });
          },
          "target_hostname"_a, "buffer"_a, "peer_buffer_address"_a, "length"_a, "transport_hint"_a = "",
          "Starts one write in the background: its id for transfer_check_status, or -1.")
      .def(
          "transfer_check_status",
          [](Engine& e, std::int64_t id) { return without_gil([&] { return id <= 0 ? -1 : e.check(static_cast<std::uint64_t>(id)); }); },
          "arg0"_a, "1 done, 0 under way, -1 failed or unknown, -2 timed out. Never waits.");
}

void bind_on_cuda(nb::class_<Engine>& engine) {
  const auto one = [](Opcode opcode) {
    return
        [opcode](Engine& e, std::string_view peer, std::uint64_t local, std::uint64_t remote, std::uint64_t length, std::uint64_t stream) {
          return without_gil([&] { return e.transfer_on_cuda(peer, opcode, {{local, remote, length}}, stream); });
        };
  };
  const auto batch = [](Opcode opcode) {
    return [opcode](Engine& e, std::string_view peer, const Numbers& local, const Numbers& remote, const Numbers& lengths,
                    std::uint64_t stream) {
      auto pieces = to_pieces(local, remote, lengths);
      if (!pieces) return kBadArgument;
      return without_gil([&] { return e.transfer_on_cuda(peer, opcode, std::move(*pieces), stream); });
    };
  };
  engine
      .def("transfer_write_on_cuda", one(Opcode::kWrite), "target_hostname"_a, "buffer"_a, "peer_buffer_address"_a, "length"_a,
           "stream_ptr"_a = 0,
           "transfer_sync_write after the work that is queued on this CUDA stream (0: the default stream). 0 once the bytes have arrived, "
           "else -1.")
      .def("transfer_read_on_cuda", one(Opcode::kRead), "target_hostname"_a, "buffer"_a, "peer_buffer_address"_a, "length"_a,
           "stream_ptr"_a = 0, "transfer_sync_read after the work that is queued on this CUDA stream; later work on it sees the bytes.")
      .def("batch_transfer_write_on_cuda", batch(Opcode::kWrite), "target_hostname"_a, "buffers"_a, "peer_buffer_addresses"_a, "lengths"_a,
           "stream_ptr"_a = 0, "transfer_write_on_cuda of all pieces in one transfer.")
      .def("batch_transfer_read_on_cuda", batch(Opcode::kRead), "target_hostname"_a, "buffers"_a, "peer_buffer_addresses"_a, "lengths"_a,
           "stream_ptr"_a = 0, "transfer_read_on_cuda of all pieces in one transfer.");
}

// Memory that the host cannot touch.
bool is_on_device(std::string_view call, std::uint64_t address) {
  auto* const cuda = transfer::cuda::Runtime::of_process();
  if (cuda == nullptr || !cuda->driver().locate(address)) return false;
  log::error("TransferEngine.{}: the address is device memory, which the host cannot touch: copy it with CUDA", call);
  return true;
}

void bind_helpers(nb::class_<Engine>& engine) {
  engine
      .def(
          "write_bytes_to_buffer",
          [](Engine&, std::uint64_t address, nb::handle data, std::uint64_t length) {
            std::string_view text;
            Bytes held;
            if (nb::try_cast(data, text)) {
            } else if (held.read(data.ptr())) {
              text = {reinterpret_cast<const char*>(held.view().data()), held.view().size()};
            } else {
              throw nb::type_error("write_bytes_to_buffer: arg1 must be bytes, another buffer, or str");
            }
            if (address == 0 || length > text.size() || is_on_device("write_bytes_to_buffer", address)) return kBadArgument;
            std::memcpy(reinterpret_cast<void*>(address), text.data(), length);
            return 0;
          },
          "arg0"_a, "arg1"_a, "arg2"_a, nb::sig("def write_bytes_to_buffer(self, arg0: int, arg1: str, arg2: int) -> int"),
          "Copies the first arg2 bytes of arg1 (bytes or str) to this process's address arg0. 0, or -1 when arg1 is shorter.")
      .def(
          "read_bytes_from_buffer",
          [](Engine&, std::uint64_t address, std::uint64_t length) {
            if (address == 0 && length > 0) throw nb::value_error("read_bytes_from_buffer: address 0");
            if (is_on_device("read_bytes_from_buffer", address)) throw nb::value_error("read_bytes_from_buffer: device memory");
            return nb::bytes(reinterpret_cast<const char*>(address), length);
          },
          "arg0"_a, "arg1"_a, "arg1 bytes at this process's address arg0.")
      .def(
          "get_first_buffer_address",
          [](Engine& e, std::string_view peer) {
            return without_gil([&]() -> std::uint64_t {
              const auto running = e.get("get_first_buffer_address");
              if (running == nullptr) return 0;
              const auto address = running->first_buffer(peer);
              if (!address.ok()) engine_code("get_first_buffer_address", address.status());
              return address.ok() ? *address : 0;
            });
          },
          "arg0"_a, "The address of the first memory that the peer registered, or 0.")
      .def(
          "send_probe",
          [](Engine& e, std::string_view peer) {
            return on_engine(e, "send_probe", [&](auto& running) { return running.probe(peer); }) == 0 ? 0 : -1;
          },
          "peer_server_name"_a, "0 when the peer answers, else -1.")
      .def(
          "get_notifies",
          [](Engine& e) {
            return without_gil([&] {
              const auto running = e.get("get_notifies");
              return running == nullptr ? std::vector<Notification>() : running->take_notifications();
            });
          },
          "The notifications that came with transfers from peers since the last call.");
}

}  // namespace

void bind_engine(nb::module_& module) {
  nb::enum_<Opcode>(module, "TransferOpcode", nb::is_arithmetic(), "The direction of a transfer, seen from the caller.")
      .value("Read", Opcode::kRead)
      .value("Write", Opcode::kWrite)
      .export_values();
  nb::class_<Notification>(module, "TransferNotify", "A message delivered to the peer after the bytes of a transfer have arrived.")
      .def(nb::init<>())
      .def(nb::init<std::string, std::string>(), "name"_a, "msg"_a)
      .def_rw("name", &Notification::name)
      .def_rw("msg", &Notification::message);
  module.def(
      "cuda_is_usable", [] { return without_gil(cuda_is_usable); }, "Whether transfers of device memory can work in this process.");
  nb::class_<Engine> engine(module, "TransferEngine", "Moves bytes between registered memories of processes; see mooncake.engine.");
  engine.def(nb::init<>());
  bind_life(engine);
  bind_memory(engine);
  bind_sync(engine);
  bind_async(engine);
  bind_on_cuda(engine);
  bind_helpers(engine);
}

}  // namespace moonpool::python
