#include "master/service.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/logging.h"

namespace moonpool::master {

namespace {

using std::chrono::milliseconds;

// After an eviction whose acknowledgement takes longer than this, more is evicted rather than waiting for a slow owner alone.
constexpr milliseconds kAcknowledgementPatience{100};

// When to answer so that the answer arrives before the caller gives up.
Deadline answer_by(const net::Request& request) {
  const auto left = request.deadline().left();
  return Deadline::after(left - std::min<std::chrono::nanoseconds>(left / 5, milliseconds(50)));
}

template <typename Message>
net::Reply reply_of(Result<Message> result) {
  if (!result.ok()) return net::Reply(result.status());
  return net::Reply(*result);
}

net::Reply reply_of(Status status) {
  if (!status.ok()) return net::Reply(std::move(status));
  return net::Reply(wire::Empty());
}

// Parses, and answers with what `operation` says.
template <typename Message, typename Operation>
net::Reply answer(const net::Request& request, Operation operation) {
  Message message;
  if (auto status = request.parse(message); !status.ok()) return net::Reply(std::move(status));
  return reply_of(operation(message));
}

// Parsed into columns that keep their memory: one of each kind a thread, good until that thread's next request.
template <typename Message>
const Message* parsed(const net::Request& request, net::Reply& reply) {
  thread_local Message message;
  if (lean::parse(request.message(), message)) return &message;
  reply.status = request.malformed();
  return nullptr;
}

}  // namespace

void Service::install(net::Server& server) {
  for (const auto method : {wire::METHOD_REGISTER_NODE, wire::METHOD_MOUNT_SEGMENT, wire::METHOD_NODE_SYNC, wire::METHOD_UNMOUNT_SEGMENT,
                            wire::METHOD_DEREGISTER_NODE, wire::METHOD_PUT_REVOKE, wire::METHOD_REMOVE, wire::METHOD_REMOVE_MATCHING,
                            wire::METHOD_PING, wire::METHOD_ATTEND}) {
    server.handle(method, [this](net::Request& request) { return serve(request); });
  }
  for (const auto method : {wire::METHOD_PUT_START, wire::METHOD_PUT_COMMIT, wire::METHOD_EXIST, wire::METHOD_GET_REPLICAS}) {
    server.handle_quickly(method, [this](net::Request& request, net::Reply& reply) { return serve_quickly(request, reply); });
  }
  server.on_closed([this](const net::Session& session) {
    if (!ending_) coordinator_.session_ended(&session);
  });
}

net::Task<net::Reply> Service::serve(net::Request& request) {
  const auto now = now_ms();
  Coordinator& master = coordinator_;
  switch (request.method()) {
    case wire::METHOD_REGISTER_NODE:
      co_return answer<wire::RegisterNodeRequest>(request, [&](const auto& message) { return master.register_node(message, now); });
    case wire::METHOD_MOUNT_SEGMENT:
      co_return answer<wire::MountSegmentRequest>(request, [&](const auto& message) { return master.mount(message, now); });
    case wire::METHOD_UNMOUNT_SEGMENT:
      co_return answer<wire::UnmountSegmentRequest>(request, [&](const auto& message) { return master.unmount(message); });
    case wire::METHOD_DEREGISTER_NODE:
      co_return answer<wire::DeregisterNodeRequest>(request, [&](const auto& message) { return master.deregister(message); });
    case wire::METHOD_ATTEND:
      co_return answer<wire::AttendRequest>(request,
                                            [&](const auto& message) { return master.attend(message, request.session().get(), now); });
    case wire::METHOD_PUT_REVOKE:
      co_return answer<wire::PutRevokeRequest>(request, [&](const auto& message) { return master.revoke(message, now); });
    case wire::METHOD_PING: {
      wire::PingReply reply;
      reply.set_term(master.term().value);
      reply.set_recovering(master.recovering(now));
      co_return net::Reply(reply);
    }
    case wire::METHOD_NODE_SYNC:
      co_return co_await node_sync(request);
    case wire::METHOD_PUT_START:
    case wire::METHOD_PUT_COMMIT:
    case wire::METHOD_EXIST:
    case wire::METHOD_GET_REPLICAS: {
      net::Reply reply;
      if (auto waiting = serve_quickly(request, reply)) co_return co_await std::move(*waiting);
      co_return reply;
    }
    case wire::METHOD_REMOVE:
      co_return co_await remove(request);
    case wire::METHOD_REMOVE_MATCHING:
      co_return co_await remove_matching(request);
    default:
      break;
  }
  co_return net::Reply(Status(ErrorCode::kNotSupported, "the master does not serve method " + std::to_string(request.method())));
}

net::Task<net::Reply> Service::node_sync(net::Request& request) {
  wire::NodeSyncRequest message;
  if (auto status = request.parse(message); !status.ok()) co_return net::Reply(std::move(status));
  const auto node = coordinator_.sync(message, request.session(), now_ms());
  if (!node.ok()) co_return net::Reply(node.status());
  const auto until = answer_by(request).sooner(coordinator_.sync_interval());
  for (;;) {
    const auto seen = (*node)->wake->epoch();
    if ((*node)->outbox->has_unsent() || (*node)->gone) break;
    if (!co_await (*node)->wake->wait(seen, until)) break;
  }
  co_return reply_of(coordinator_.sync_reply(**node, request.session(), now_ms()));
}

// --- the hot methods -------------------------------------------------------------------------------------------------------------

std::optional<net::Task<net::Reply>> Service::serve_quickly(net::Request& request, net::Reply& reply) {
  switch (request.method()) {
    case wire::METHOD_PUT_START:
      return put_start(request, reply);
    case wire::METHOD_EXIST:
      return exist(request, reply);
    case wire::METHOD_PUT_COMMIT:
      put_commit(request, reply);
      return std::nullopt;
    default:
      get_replicas(request, reply);
      return std::nullopt;
  }
}

void Service::get_replicas(net::Request& request, net::Reply& reply) {
  const auto* message = parsed<lean::GetReplicasRequest>(request, reply);
  if (message == nullptr) return;
  const auto found = coordinator_.get_replicas(*message, now_ms());
  if (!found.ok()) {
    reply.status = found.status();
  } else {
    lean::write(found->reply, reply.message);
  }
}

void Service::put_commit(net::Request& request, net::Reply& reply) {
  const auto* message = parsed<lean::PutCommitRequest>(request, reply);
  if (message == nullptr) return;
  const auto committed = coordinator_.commit(*message, now_ms());
  if (!committed.ok()) {
    reply.status = committed.status();
  } else {
    lean::write(*committed, reply.message);
  }
}

std::optional<net::Task<net::Reply>> Service::put_start(net::Request& request, net::Reply& reply) {
  const auto* message = parsed<lean::PutStartRequest>(request, reply);
  if (message == nullptr) return std::nullopt;
  auto begun = coordinator_.begin_put(*message, now_ms());
  if (!begun.ok()) {
    reply.status = begun.status();
    return std::nullopt;
  }
  if (auto status = coordinator_.try_put(*begun, now_ms()); !status.ok()) {
    reply.status = std::move(status);
    return std::nullopt;
  }
  if (begun->bytes_without_room() > 0) return put_when_there_is_room(request, std::move(*begun));
  finish_put(*begun, reply);
  return std::nullopt;
}

void Service::finish_put(const PutBatch& batch, net::Reply& reply) {
  if (nudge_ && coordinator_.above_watermark()) nudge_();
  lean::write(coordinator_.put_reply(batch), reply.message);
}

net::Task<net::Reply> Service::put_when_there_is_room(net::Request& request, PutBatch batch) {
  const auto until = answer_by(request).sooner(coordinator_.config().room_wait);
  bool stalled = false;
  bool hopeless = false;
  bool waited = false;
  for (;;) {
    const auto seen = coordinator_.progress().epoch();
    if (auto status = coordinator_.try_put(batch, now_ms()); !status.ok()) co_return net::Reply(std::move(status));
    if (batch.bytes_without_room() == 0) break;
    if (until.expired()) {
      if (coordinator_.full_log().allow(now_ms())) {
        log::warning("put: no room for {} bytes within {} ms: owners do not acknowledge evictions", batch.bytes_without_room(),
                     coordinator_.config().room_wait.count());
      }
      break;
    }
    if (coordinator_.make_room(batch, now_ms(), stalled) == RoomVerdict::kHopeless) {
      if (hopeless) break;
      hopeless = true;  // room may have come between the try and the verdict: one more try
      continue;
    }
    hopeless = false;
    if (!waited) ++coordinator_.counters().put_waited_for_space;
    waited = true;
    stalled = !co_await coordinator_.progress().wait(seen, until.sooner(kAcknowledgementPatience));
  }
  net::Reply reply;
  finish_put(batch, reply);
  co_return reply;
}

namespace {
void write_existence(const Coordinator::Existence& existence, net::Reply& reply) {
  lean::ExistReply answer;
  answer.status.reserve(existence.status.size());
  for (const auto status : existence.status) answer.status.push_back(status == ErrorCode::kOk ? 1 : 0);
  lean::write(answer, reply.message);
}
}  // namespace

std::optional<net::Task<net::Reply>> Service::exist(net::Request& request, net::Reply& reply) {
  const auto* message = parsed<lean::ExistRequest>(request, reply);
  if (message == nullptr) return std::nullopt;
  const auto started = now_ms();
  auto existence = coordinator_.exist(*message, started);
  if (!existence.ok()) {
    reply.status = existence.status();
    return std::nullopt;
  }
  const auto longest = std::min(milliseconds(message->wait_ms), coordinator_.config().handover_wait);
  if (!existence->on_their_way.empty() && longest.count() > 0) {
    const auto asker = NodeId::from_bytes(message->node_id).value_or(NodeId());
    return exist_when_settled(request, std::move(*existence), asker, longest, started);
  }
  write_existence(*existence, reply);
  return std::nullopt;
}

net::Task<net::Reply> Service::exist_when_settled(net::Request& request, Coordinator::Existence existence, NodeId asker,
                                                  milliseconds longest, TimeMs started) {
  const auto until = answer_by(request).sooner(longest);
  coordinator_.handover().counters.keys_waited += existence.on_their_way.size();
  bool timed_out = false;
  for (const auto i : existence.on_their_way) {
    const auto key = existence.keys[i];
    auto& event = coordinator_.settled(hash_of(key));
    while (!timed_out) {
      const auto seen = event.epoch();
      if (!coordinator_.still_on_its_way(key, asker, now_ms())) break;
      timed_out = !co_await event.wait(seen, until);
    }
  }
  coordinator_.finish_wait(existence, asker, timed_out, now_ms());
  const bool all = std::all_of(existence.on_their_way.begin(), existence.on_their_way.end(),
                               [&](std::uint32_t i) { return existence.status[i] == ErrorCode::kOk; });
  coordinator_.handover().count_wait(now_ms() - started, all);
  net::Reply reply;
  write_existence(existence, reply);
  co_return reply;
}

// --- removes ---------------------------------------------------------------------------------------------------------------------

net::Task<net::Reply> Service::remove(net::Request& request) {
  wire::RemoveRequest message;
  if (auto status = request.parse(message); !status.ok()) co_return net::Reply(std::move(status));
  std::vector<std::string> keys;
  auto removed = coordinator_.remove(message, keys, now_ms());
  if (!removed.ok()) co_return net::Reply(removed.status());
  const auto until = answer_by(request);
  bool fenced = false;
  wire::StatusReply reply;
  for (auto& item : *removed) {
    while (item.ticket && item.ticket->state() == RetirementTicket::State::kOutstanding) {
      const auto seen = coordinator_.progress().epoch();
      if (item.ticket->state() != RetirementTicket::State::kOutstanding) break;
      if (!co_await coordinator_.progress().wait(seen, until)) break;
    }
    if (item.ticket && item.ticket->state() == RetirementTicket::State::kLost) {
      co_return net::Reply(Status(ErrorCode::kRecovering, "remove: a new reign began before the owners acknowledged: ask again"));
    }
    if (item.ticket && item.ticket->state() == RetirementTicket::State::kOutstanding) {
      item.status = ErrorCode::kRpcTimeout;
      ++coordinator_.counters().remove_timeouts;
    }
    fenced = fenced || (item.ticket && item.ticket->fenced());
    reply.add_status(static_cast<std::int32_t>(item.status));
  }
  if (fenced) {
    for (auto& bytes : coordinator_.membership().fenced().all()) *reply.add_fenced() = std::move(bytes);
  }
  co_return net::Reply(reply);
}

net::Task<net::Reply> Service::remove_matching(net::Request& request) {
  wire::RemoveMatchingRequest message;
  if (auto status = request.parse(message); !status.ok()) co_return net::Reply(std::move(status));
  auto begun = coordinator_.begin_remove_matching(message, now_ms());
  if (!begun.ok()) co_return net::Reply(begun.status());
  const auto executor = co_await boost::asio::this_coro::executor;
  for (std::size_t shard = 0; shard < ObjectTable::kShards; ++shard) {
    if (auto status = coordinator_.remove_matching(*begun, shard, now_ms()); !status.ok()) co_return net::Reply(std::move(status));
    co_await boost::asio::post(executor, boost::asio::use_awaitable);  // others' requests in between
  }
  const auto until = answer_by(request);
  const auto barrier = coordinator_.barrier();
  while (true) {
    const auto seen = coordinator_.progress().epoch();
    if (coordinator_.term() != barrier.term) {
      co_return net::Reply(Status(ErrorCode::kRecovering, "remove: a new reign began before the owners acknowledged: ask again"));
    }
    if (coordinator_.over(barrier)) break;
    if (!co_await coordinator_.progress().wait(seen, until)) {
      ++coordinator_.counters().remove_timeouts;
      co_return net::Reply(Status(ErrorCode::kRpcTimeout, "remove: " + std::to_string(begun->removed) +
                                                              " keys are removed, but not all owners acknowledged in time: ask again"));
    }
  }
  wire::RemoveMatchingReply reply;
  reply.set_removed(begun->removed);
  for (auto& bytes : coordinator_.membership().fenced().all()) *reply.add_fenced() = std::move(bytes);
  co_return net::Reply(reply);
}

}  // namespace moonpool::master
