// Administration of a running gateway: instances are added, removed (drained first) and given another role.
//
// Needs a key of role admin (access.h). Every attempt, refused ones included, writes one audit line to the log: from where, by the key of
// which name, what, on which instance, with which result; never a key. Threads: any executor. Ownership: functions over the shared
// state; a drain goes on by itself when the client that asked for it is gone.
#pragma once

#include <string>
#include <string_view>

#include "gateway/cancellation.h"
#include "gateway/gateway_state.h"
#include "gateway/http_message.h"
#include "gateway/status.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

enum class AdminAction { kAdd, kRemove, kSetRole };

// `peer` is who asks, for the audit line. kRemove answers when the instance has left its group.
[[nodiscard]] Task<Reply> administer(AdminAction action, GatewayState& state, UpstreamPool& pool, const RequestParser& request,
                                     std::string peer, Cancellation& cancellation);

// Gives the instance nothing new and takes it out of its group when it is idle, at the latest at the deadline; unless the draining is
// called off meanwhile (Instance::set_draining). Requests that still run then go on. Used by the administration and by discovery.
[[nodiscard]] Task<void> drain_and_remove(GatewayState& state, Group& group, std::shared_ptr<Instance> instance, Deadline deadline);

}  // namespace moonpool::gateway
