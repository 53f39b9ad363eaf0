// Serves a transfer engine's registered memory: METHOD_RAW_WRITE, METHOD_RAW_READ, METHOD_DESCRIBE, METHOD_NOTIFY, METHOD_PROBE.
//
// Every piece of a request is checked against the registered ranges before a byte is moved, and the ranges are held until it has ended;
// data is received straight into them and sent straight from them. Requests name the engine's incarnation, so that addresses of a process
// that is gone never hit its successor on the same port. Requests that touch device memory are cuda/served_moves.h's. Threads: the
// server's. Functions, so that tests and fuzzers can call them with a Request of their own.
#pragma once

#include <functional>

#include "net/server.h"
#include "transfer/notification_queue.h"
#include "transfer/registered_memory.h"

namespace moonpool::transfer {

namespace cuda {
class ServedMoves;
}

inline constexpr std::size_t kMaxPiecesPerFrame = 1U << 20;

struct RawService {
  RegisteredMemory& memory;
  NotificationQueue& notifications;
  Incarnation incarnation;
  std::function<wire::EngineDescriptor()> describe;  // from any thread
  cuda::ServedMoves* devices = nullptr;              // null: no memory is on a device
};

[[nodiscard]] net::Task<net::Reply> handle_raw_write(RawService& service, net::Request& request);
[[nodiscard]] net::Task<net::Reply> handle_raw_read(RawService& service, net::Request& request);
[[nodiscard]] net::Task<net::Reply> handle_notify(RawService& service, net::Request& request);
// The service must outlive the server's stop().
void serve(RawService& service, net::Server& server);

}  // namespace moonpool::transfer
