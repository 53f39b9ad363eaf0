#include "gateway/kv_events/event_follower.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "base/logging.h"
#include "gateway/retry.h"

namespace moonpool::gateway {

namespace {

constexpr std::chrono::milliseconds kTick{100};
constexpr std::chrono::seconds kHandshake{5};
constexpr std::chrono::seconds kSilence{5};  // then a PING
constexpr std::chrono::seconds kDead{15};    // not even a PONG
constexpr std::chrono::seconds kReplay{30};
constexpr std::chrono::seconds kReplaySilence{3};
constexpr std::chrono::milliseconds kFirstPause{250};
constexpr std::chrono::milliseconds kLongestPause{10'000};
constexpr std::uint64_t kEndOfReplay = ~std::uint64_t{0};

std::string big_endian(std::uint64_t number) {
  std::string bytes;
  for (unsigned i = 8; i-- > 0;) bytes += static_cast<char>(number >> (8 * i));
  return bytes;
}

struct Numbered {
  std::uint64_t number = 0;
  std::string_view payload;
};

// The last two frames, whatever is before them: the topic, and over the replay port an empty one (older versions leave the topic out
// there).
std::optional<Numbered> numbered(const ZmtpMessage& message) {
  if (message.size() < 2 || message[message.size() - 2].size() != 8) return std::nullopt;
  Numbered found{0, message.back()};
  for (const char c : message[message.size() - 2]) found.number = found.number << 8 | static_cast<unsigned char>(c);
  return found;
}

}  // namespace

KvEventFollower::KvEventFollower(const Executor& executor, GatewayState& state, Resolver& resolver)
    : executor_(executor), state_(state), resolver_(resolver), timer_(executor) {}

void KvEventFollower::start() {
  if (state_.prefill_prompts == nullptr && state_.decode_prompts == nullptr) return;
  asio::co_spawn(
      executor_, [self = shared_from_this()] { return self->run(); }, asio::detached);
}

void KvEventFollower::stop() {
  stopped_ = true;
  timer_.cancel();
  for (const auto& [instance, one] : followed_) one->cancellation.cancel();
}

Task<void> KvEventFollower::run() {
  const auto self = shared_from_this();
  while (!stopped_) {
    look_after(state_.prefill);
    look_after(state_.decode);
    for (const auto& [instance, one] : followed_) {
      if (state_.group_of(one->instance->role()).find(one->instance->name()) != one->instance) one->cancellation.cancel();
    }
    timer_.expires_after(kTick);
    co_await timer_.async_wait(kAwait);
  }
}

void KvEventFollower::look_after(const Group& group) {
  const auto list = group.snapshot();  // held: the group may replace its list meanwhile
  for (const auto& instance : *list) {
    if (instance->live_blocks() == nullptr || followed_.contains(instance.get())) continue;
    auto one = std::make_shared<Followed>();
    one->instance = instance;
    one->source = state_.settings().events_of(group.role());
    followed_.emplace(instance.get(), one);
    asio::co_spawn(
        executor_, [self = shared_from_this(), one] { return self->follow(one); }, asio::detached);
  }
}

Task<void> KvEventFollower::follow(std::shared_ptr<Followed> one) {
  const auto self = shared_from_this();
  std::string last_error;
  unsigned failures = 0;
  while (!one->cancellation.cancelled() && !stopped_) {
    const Status ended = co_await listen(*one);
    if (one->live().is_connected()) failures = 0;
    one->live().disconnected(ended.message());
    if (one->cancellation.cancelled() || stopped_) break;
    // Once for each new reason.
    if (std::exchange(last_error, ended.message()) != ended.message()) {
      log::warning("the KV events of {} instance {} are not there, it is judged by what it is sent: {}", one->instance->role(), one->name(),
                   ended.message());
    }
    ++failures;  // clang calls it unsequenced within the co_await
    co_await pause(retry_pause(failures, kFirstPause, kLongestPause), one->cancellation);
  }
  followed_.erase(one->instance.get());
}

Task<Status> KvEventFollower::connect(ZmtpConnection& connection, Followed& one, std::uint16_t port, std::string socket_type,
                                      std::vector<std::string> peers) {
  const std::string& host = one.instance->name().host();
  const bool is_v6 = host.find(':') != std::string::npos;
  auto name = InstanceName::parse((is_v6 ? "[" + host + "]" : host) + ":" + std::to_string(port));
  if (!name.ok()) co_return name.status();
  const TimeLimit limit = Deadline::after(kHandshake);
  auto endpoints = co_await resolver_.resolve(*name, limit, one.cancellation);
  if (!endpoints.ok()) co_return endpoints.status();
  co_return co_await connection.open(std::move(endpoints).value(), std::move(socket_type), std::move(peers), limit);
}

Task<Status> KvEventFollower::listen(Followed& one) {
  ZmtpConnection connection(executor_, one.name() + ", port " + std::to_string(one.source.port));
  const Cancellation::Scope scope(one.cancellation, connection);
  std::vector<std::string> publishers{"PUB", "XPUB"};
  Status status = co_await connect(connection, one, one.source.port, "SUB", std::move(publishers));
  if (!status.ok()) co_return status;
  status = co_await connection.send(zmtp_subscription(one.source.topic), Deadline::after(kHandshake));
  if (!status.ok()) co_return status;
  one.live().forget(false);
  one.next.reset();
  if (one.source.replay_port != 0) {
    status = co_await replay(one);
    if (!status.ok()) log::warning("the KV events of {} before now are not known: {}", one.name(), status.message());
    if (one.cancellation.cancelled()) co_return Status(ErrorCode::kCancelled, "it left");
  }
  one.live().connected();
  log::info("the KV events of {} instance {} are followed{}", one.instance->role(), one.name(),
            one.live().is_whole() ? "" : ", those before now are not known");
  for (;;) {
    auto message = co_await connection.receive(Deadline::after(kSilence));
    if (message.ok()) {
      status = co_await take(one, *message);
      if (!status.ok()) co_return status;
      continue;
    }
    if (message.code() != ErrorCode::kRpcTimeout) co_return message.status();
    if (connection.heard() + kDead < Deadline::Clock::now()) co_return message.status();
    status = co_await connection.send(zmtp_ping(), Deadline::after(kHandshake));
    if (!status.ok()) co_return status;
  }
}

Task<Status> KvEventFollower::take(Followed& one, const ZmtpMessage& message) {
  const auto batch = numbered(message);
  if (!batch) co_return Status(ErrorCode::kProtocol, one.name() + " sent a message that is no batch of KV events");
  if (one.next && batch->number < *one.next) co_return Status();  // came with the replay
  if (one.next && batch->number > *one.next) {
    one.live().missed_events();
    if (one.source.replay_port != 0) {
      const Status status = co_await replay(one);
      if (one.cancellation.cancelled()) co_return Status(ErrorCode::kCancelled, "it left");
      if (!status.ok()) log::warning("missed KV events of {}: {}", one.name(), status.message());
    }
    if (one.next && batch->number < *one.next) co_return Status();
    if (one.next != batch->number) {
      log::info("KV events of {} are lost: what it has is not known, it is judged by what it is sent from now on too", one.name());
      one.live().forget(false);
    }
  } else if (!one.next && batch->number == 0) {
    one.live().forget(true);
  }
  apply(one, batch->number, batch->payload);
  co_return Status();
}

void KvEventFollower::apply(Followed& one, std::uint64_t number, std::string_view payload) {
  one.next = number + 1;
  const auto events = parse_kv_event_batch(payload);
  if (!events.ok()) {
    log::warning("{}: {}", one.name(), events.status().message());
    one.live().forget(false);
    return;
  }
  one.live().apply(*events);
}

Task<Status> KvEventFollower::replay(Followed& one) {
  const TimeLimit limit = Deadline::after(kReplay);
  // A ROUTER drops what its peer's queue has no room for, so a round may have gaps: each next one asks from there.
  for (;;) {
    const std::uint64_t from = one.next.value_or(0);
    const Status status = co_await replay_round(one, limit, from);
    if (status.ok()) co_return status;
    const bool progress = one.next.value_or(0) > from;
    if (status.code() != ErrorCode::kBufferOverflow || !progress || limit.expired()) co_return status;
  }
}

// kBufferOverflow: batches are missing within what came.
Task<Status> KvEventFollower::replay_round(Followed& one, TimeLimit limit, std::uint64_t from) {
  ZmtpConnection connection(executor_, one.name() + ", port " + std::to_string(one.source.replay_port));
  const Cancellation::Scope scope(one.cancellation, connection);
  std::vector<std::string> routers{"ROUTER"};
  Status status = co_await connect(connection, one, one.source.replay_port, "DEALER", std::move(routers));
  if (!status.ok()) co_return status;
  // As a REQ would: an empty frame before the question.
  const ZmtpMessage question{"", big_endian(from)};
  status = co_await connection.send(zmtp_message(question), limit.sooner({kHandshake}));
  if (!status.ok()) co_return status;
  for (;;) {
    auto message = co_await connection.receive(limit.sooner({kReplaySilence}));
    if (!message.ok()) {
      // Its end may be what was dropped.
      if (message.code() == ErrorCode::kRpcTimeout && one.next.value_or(0) > from) co_return Status(ErrorCode::kBufferOverflow, "no end");
      co_return message.status();
    }
    const auto batch = numbered(*message);
    if (!batch) co_return Status(ErrorCode::kProtocol, one.name() + " answered what is no batch of KV events");
    if (batch->number == kEndOfReplay) {
      if (!one.next) {  // nothing was published yet
        one.next = 0;
        one.live().forget(true);
      }
      co_return Status();
    }
    if (!one.next && batch->number == 0) one.live().forget(true);
    if (one.next && batch->number < *one.next) continue;
    if (one.next && batch->number > *one.next)
      co_return Status(ErrorCode::kBufferOverflow, "batches before the oldest that is kept are lost");
    apply(one, batch->number, batch->payload);
  }
}

}  // namespace moonpool::gateway
