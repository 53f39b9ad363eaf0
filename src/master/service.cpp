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

}  // namespace

void Service::install(net::Server& server) {
  for (const auto method :
       {wire::METHOD_REGISTER_NODE, wire::METHOD_MOUNT_SEGMENT, wire::METHOD_NODE_SYNC, wire::METHOD_UNMOUNT_SEGMENT,
        wire::METHOD_DEREGISTER_NODE, wire::METHOD_PUT_START, wire::METHOD_PUT_COMMIT, wire::METHOD_PUT_REVOKE, wire::METHOD_EXIST,
        wire::METHOD_GET_REPLICAS, wire::METHOD_REMOVE, wire::METHOD_REMOVE_MATCHING, wire::METHOD_PING, wire::METHOD_ATTEND}) {
    server.handle(method, [this](net::Request& request) { return serve(request); });
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
    case wire::METHOD_PUT_COMMIT:
      co_return answer<wire::PutCommitRequest>(request, [&](const auto& message) { return master.commit(message, now); });
    case wire::METHOD_PUT_REVOKE:
      co_return answer<wire::PutRevokeRequest>(request, [&](const auto& message) { return master.revoke(message, now); });
    case wire::METHOD_GET_REPLICAS:
      co_return answer<wire::GetReplicasRequest>(request, [&](const auto& message) { return master.get_replicas(message, now); });
    case wire::METHOD_PING: {
      wire::PingReply reply;
      reply.set_term(master.term().value);
      reply.set_recovering(master.recovering(now));
      co_return net::Reply(reply);
    }
    case wire::METHOD_NODE_SYNC:
      co_return co_await node_sync(request);
    case wire::METHOD_PUT_START:
      co_return co_await put_start(request);
    case wire::METHOD_EXIST:
      co_return co_await exist(request);
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

net::Task<net::Reply> Service::put_start(net::Request& request) {
  wire::PutStartRequest message;
  if (auto status = request.parse(message); !status.ok()) co_return net::Reply(std::move(status));
  auto begun = coordinator_.begin_put(message, now_ms());
  if (!begun.ok()) co_return net::Reply(begun.status());
  PutBatch& batch = *begun;
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
  if (nudge_ && coordinator_.above_watermark()) nudge_();
  co_return net::Reply(coordinator_.put_reply(batch));
}

net::Task<net::Reply> Service::exist(net::Request& request) {
  wire::ExistRequest message;
  if (auto status = request.parse(message); !status.ok()) co_return net::Reply(std::move(status));
  const auto started = now_ms();
  auto result = coordinator_.exist(message, started);
  if (!result.ok()) co_return net::Reply(result.status());
  auto& existence = *result;
  const auto longest = std::min(milliseconds(message.wait_ms()), coordinator_.config().handover_wait);
  if (!existence.on_their_way.empty() && longest.count() > 0) {
    const auto until = answer_by(request).sooner(longest);
    const auto asker = NodeId::from_bytes(message.node_id()).value_or(NodeId());
    coordinator_.handover().counters.keys_waited += existence.on_their_way.size();
    bool timed_out = false;
    for (const auto i : existence.on_their_way) {
      const auto& key = existence.keys[i];
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
  }
  wire::ExistReply reply;
  for (const auto status : existence.status) reply.add_status(status == ErrorCode::kOk ? 1 : 0);
  co_return net::Reply(reply);
}

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
