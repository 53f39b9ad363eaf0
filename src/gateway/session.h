// One client connection from its first request to its end: reads, routes, answers, logs.
// Threads: the executor of its socket. Ownership: its own coroutine's.
#pragma once

#include <memory>

#include "gateway/client_connection.h"
#include "gateway/gateway_state.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

[[nodiscard]] Task<void> run_session(std::shared_ptr<ClientConnection> client, GatewayState& state, UpstreamPool& pool);

}  // namespace moonpool::gateway
