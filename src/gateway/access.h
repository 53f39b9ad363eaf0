// Which requests may pass: the key that a request presents against what its endpoint wants.
//
// Clients' endpoints want a client's key as soon as one is configured, administration an admin's, and what shows the gateway's state one of
// a monitor or an admin where --protect-status says so. A key of one role opens no other's endpoints. Threads: any. Ownership: functions
// over the shared state.
#pragma once

#include <optional>
#include <string_view>

#include "gateway/gateway_state.h"
#include "gateway/http_message.h"
#include "gateway/status.h"

namespace moonpool::gateway {

struct Access {
  const ApiKey* key = nullptr;  // null also where none is wanted; good for the gateway's life
  std::optional<Reply> refusal;
};

// Authorization: Bearer, else X-API-Key.
[[nodiscard]] Access client_access(const GatewayState& state, const RequestParser& request);
[[nodiscard]] Access status_access(const GatewayState& state, const RequestParser& request);
// X-API-Key, else Authorization: Bearer.
[[nodiscard]] Access admin_access(const GatewayState& state, const RequestParser& request);

// The token of Authorization: Bearer; empty when there is none.
[[nodiscard]] std::string_view bearer_token(const HeaderFields& headers);

}  // namespace moonpool::gateway
