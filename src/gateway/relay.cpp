#include "gateway/relay.h"

#include <algorithm>
#include <utility>

#include "base/ids.h"
#include "base/logging.h"
#include "gateway/kv_events/token_ids.h"
#include "gateway/request_cost.h"
#include "gateway/resolver.h"
#include "gateway/sse.h"

namespace moonpool::gateway {

namespace {

constexpr std::size_t kErrorAnswerAtMost = std::size_t{1} << 20;
constexpr std::size_t kPrefillAnswerAtMost = std::size_t{64} << 20;  // prompt logprobs can be long

std::chrono::nanoseconds since(RequestRecord::Time time) { return RequestRecord::Clock::now() - time; }

bool is_json(const ResponseParser& answer) { return answer.headers.get(http::field::content_type).starts_with("application/json"); }

TimeLimit limit_of(const Timeouts& timeouts, const RequestRecord& record) {
  const auto limit = TimeLimit::after({timeouts.request, "--request-timeout"});
  if (record.deadline == RequestRecord::Time{} || record.deadline > limit.deadline.time()) return limit;
  return {Deadline::at(record.deadline), {record.deadline - record.received, "X-Request-Timeout-Ms"}};
}

Status status_failure(const Instance& instance, unsigned status) {
  return Status(ErrorCode::kRpcFail, instance.name().to_string() + " answered HTTP " + std::to_string(status));
}

}  // namespace

class Relay::Tries {
 public:
  Tries(Relay& relay, Group& group) : relay_(relay), group_(group) {}

  // The next instance to try; null when the attempts, the instances or the time are used up.
  [[nodiscard]] Task<std::shared_ptr<Instance>> next() {
    if (attempts_ >= relay_.state_.settings().attempts || (attempts_ > 0 && relay_.deadline_.expired())) co_return nullptr;
    auto instance = group_.pick(relay_.facts(), tried_);
    if (instance == nullptr) instance = std::exchange(spared_, nullptr);
    if (instance == nullptr) co_return nullptr;
    if (attempts_ > 0) {
      GatewayState& state = relay_.state_;
      if (!state.retry_budget.allow()) {
        state.counters.retries_refused.fetch_add(1, std::memory_order_relaxed);
        over_budget_ = true;
        co_return nullptr;
      }
      state.counters.retries.fetch_add(1, std::memory_order_relaxed);
      const auto& retries = state.settings().retries;
      co_await pause(retry_pause(attempts_, retries.first, retries.longest), relay_.cancellation_);
    }
    ++relay_.record_.attempts;
    ++attempts_;
    if (std::ranges::find(tried_, instance) == tried_.end()) tried_.push_back(instance);
    co_return instance;
  }
  // What it was asked was perhaps to blame, not the instance: when no other is left it is asked once more.
  void spare(std::shared_ptr<Instance> instance) { spared_ = std::move(instance); }
  [[nodiscard]] std::size_t count() const { return tried_.size(); }
  // How many were asked and why no further one, for an error's text; empty when there was none.
  [[nodiscard]] std::string summary() const {
    if (tried_.empty()) return {};
    std::string text = std::to_string(tried_.size()) + (tried_.size() == 1 ? " instance was tried" : " instances were tried");
    if (over_budget_) text += ", more would exceed --retry-budget";
    return text;
  }

 private:
  Relay& relay_;
  Group& group_;
  InstanceList tried_;
  std::shared_ptr<Instance> spared_;  // one of tried_, or null
  unsigned attempts_ = 0;
  bool over_budget_ = false;
};

Relay::Relay(GatewayState& state, UpstreamPool& pool, ClientConnection& client, const RequestParser& request, RequestRecord& record,
             bool keep_alive)
    : state_(state),
      pool_(pool),
      client_(client),
      request_(request),
      prompt_(request.body),
      record_(record),
      deadline_(limit_of(state.settings().timeouts, record)),
      forwarded_fields_(
          forwarded_request_fields(request.headers, record.id, record.trace.came_with_request(), state.authorization_for_instances())),
      kv_transfer_(state.settings().kv_transfer.mode),
      keep_alive_(keep_alive) {}

Task<bool> Relay::completion() {
  state_.counters.requests.fetch_add(1, std::memory_order_relaxed);
  auto edited = make_prefill_body(request_.body);
  if (!edited.ok()) {
    state_.counters.bad_requests.fetch_add(1, std::memory_order_relaxed);
    co_return co_await send_error(400, edited.status().message());
  }
  asked_ = std::move(edited).value();
  const ContinueStreams mode = state_.settings().continue_streams;
  if (asked_.is_streamed && mode != ContinueStreams::kOff && (asked_.is_greedy || mode == ContinueStreams::kAlways)) {
    continuation_.emplace(request_.path(), request_.body, asked_.is_greedy, mode == ContinueStreams::kAlways);
  }
  record_.hops_started = RequestRecord::Clock::now();
  state_.retry_budget.request(record_.hops_started);
  if (state_.decode.empty()) co_return co_await give_up(state_.decode, {});  // before a prefill is spent on it
  if (is_peer_to_peer(kv_transfer_) && asked_.has_kv_transfer_params) decode_body_ = with_kv_transfer_params(request_.body, {});
  if (!skips_prefill()) {
    if (wants_tokens()) ask_for_token_ids(asked_.text);
    client_.watch(cancellation_);
    const Turn turn = co_await prefill(std::move(asked_.text));
    client_.unwatch();
    record_.prefill_done = RequestRecord::Clock::now();
    state_.prefill.hops.record(record_.prefill_done - record_.hops_started);
    if (turn != Turn::kFailed || cancellation_.cancelled()) co_return co_await finish(turn);
  }
  failure_.reset();
  co_return co_await forward(state_.decode);
}

Task<bool> Relay::forward(Group& group) {
  const Time begun = RequestRecord::Clock::now();
  if (record_.hops_started == Time{}) record_.hops_started = begun;
  client_.watch(cancellation_);
  Tries tries(*this, group);
  for (auto instance = co_await tries.next(); instance != nullptr; instance = co_await tries.next()) {
    begin_hop(*instance);
    const Turn turn = co_await decode_on(instance);
    end_hop();
    if (turn == Turn::kFailed && !cancellation_.cancelled()) {
      if (may_be_the_blocks(*failure_)) tries.spare(instance);
      forget_handed_over();
      continue;
    }
    client_.unwatch();
    group.hops.record(since(begun));
    co_return co_await finish(turn);
  }
  client_.unwatch();
  if (tries.count() > 0) group.hops.record(since(begun));
  std::string tried = tries.summary();
  co_return co_await give_up(group, std::move(tried));
}

Task<bool> Relay::finish(Turn turn) {
  if (client_.interrupted() && cancellation_.cancelled() && !record_.cut) co_return co_await stopped();
  if (turn == Turn::kClientGone || cancellation_.cancelled()) {
    if (!record_.cut) {
      record_.client_gone = true;
      state_.counters.client_gone.fetch_add(1, std::memory_order_relaxed);
    }
    co_return false;
  }
  if (record_.cut) co_return false;
  (record_.status >= 500 ? state_.counters.failed : state_.counters.answered).fetch_add(1, std::memory_order_relaxed);
  co_return keep_alive_;
}

// The gateway stops and this request did not end within the drain time.
Task<bool> Relay::stopped() {
  keep_alive_ = false;
  const std::string message =
      "the gateway was stopped and this request did not end within its drain time (--drain-timeout). Send the request again";
  if (record_.status == 0) {
    state_.counters.failed.fetch_add(1, std::memory_order_relaxed);
    co_return co_await send_error(503, message, "Retry-After: 1\r\n");
  }
  record_.cut = true;
  record_.error = message;
  state_.counters.cut.fetch_add(1, std::memory_order_relaxed);
  if (is_stream_) static_cast<void>(co_await write_error_event(message));
  co_return false;
}

bool Relay::skips_prefill() {
  if (asked_.prompt_is_empty || state_.prefill.empty() || kv_transfer_ == KvTransfer::kNone) return true;
  if (is_peer_to_peer(kv_transfer_) && asked_.has_several_sequences) return true;  // see kv_transfer.h
  const std::size_t below = state_.settings().decode_first_below;
  if (below == 0) return false;
  const auto uncached = state_.decode.uncached_bytes(facts());
  if ((uncached ? *uncached : prompt_parts(request_.body).prompt.size()) >= below) return false;
  record_.decode_first = true;
  state_.counters.decode_first.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void Relay::hand_over(std::string_view answer, const std::string& mooncake_params) {
  std::string_view params;
  if (kv_transfer_ == KvTransfer::kMooncake && ended_for_length(answer)) params = mooncake_params;
  if (kv_transfer_ == KvTransfer::kNixl || kv_transfer_ == KvTransfer::kAuto) params = handed_over(answer);
  if (params.empty() || asked_.has_several_sequences) return;
  decode_body_ = with_kv_transfer_params(request_.body, params);
  handed_over_ = true;
  state_.counters.kv_handed_over.fetch_add(1, std::memory_order_relaxed);
}

// An engine that cannot load the blocks it was told of answers 5xx, or ends its stream with an error (vLLM's kv_load_failure_policy is
// "fail" unless told otherwise). It can still compute the prompt.
bool Relay::may_be_the_blocks(const Failure& failure) const {
  return handed_over_ && record_.status == 0 && failure.reason.code() == ErrorCode::kRpcFail;
}

void Relay::forget_handed_over() {
  if (handed_over_) decode_body_ = with_kv_transfer_params(request_.body, {});
  handed_over_ = false;
}

std::string_view Relay::decode_body() const {
  if (record_.status != 0) return continued_body_;  // the client has the beginning of a stream from another instance
  return decode_body_.empty() ? std::string_view(request_.body) : std::string_view(decode_body_);
}

// kFailed here means "go on with decode": the prefill was done, or cannot be.
Task<Relay::Turn> Relay::prefill(std::string body) {
  if (kv_transfer_ == KvTransfer::kNixl) body = with_kv_transfer_params(body, kNixlPrefillParams);
  Tries tries(*this, state_.prefill);
  for (auto instance = co_await tries.next(); instance != nullptr; instance = co_await tries.next()) {
    begin_hop(*instance);
    const Turn turn = co_await prefill_on(instance, body);
    end_hop();
    if (turn != Turn::kFailed || cancellation_.cancelled()) co_return turn;
    if (!record_.prefill.empty()) co_return Turn::kFailed;
  }
  if (cancellation_.cancelled()) co_return Turn::kClientGone;
  state_.counters.prefill_given_up.fetch_add(1, std::memory_order_relaxed);
  log::warning("request {}: no prefill instance did its part ({}, the last: {}): decode computes the prompt itself", record_.id,
               tries.summary(), failure_ ? failure_->reason.message() : "none");
  co_return Turn::kFailed;
}

Task<Relay::Turn> Relay::prefill_on(const std::shared_ptr<Instance>& instance, std::string_view body) {
  const Instance::InFlight in_flight(instance);
  const auto& timeouts = state_.settings().timeouts;
  const Patience patience(timeouts.prefill, "--prefill-timeout");
  std::string own_body;
  std::string own_fields;
  std::string mooncake_params;
  if (kv_transfer_ == KvTransfer::kMooncake) {
    const auto peer = co_await state_.mooncake_peers.find(
        pool_, instance->name(), state_.settings().kv_transfer.mooncake_port_of(instance->name()),
        request_.headers.get("x-data-parallel-rank"), deadline_.sooner({timeouts.connect}).deadline, cancellation_);
    if (!peer.ok()) co_return instance_failed(*instance, peer.status());
    const std::string transfer = NodeId::generate().to_string();  // one for each try: an instance that failed may still hold the last
    own_body = with_kv_transfer_params(body, mooncake_prefill_params(transfer));
    body = own_body;
    mooncake_params = mooncake_decode_params(transfer, peer->engine);
    if (peer->rank) own_fields = "X-data-parallel-rank: " + std::to_string(*peer->rank) + "\r\n";
  }
  const Time sent = RequestRecord::Clock::now();
  auto opened = co_await open(*instance, body, patience, own_fields);
  if (!opened.ok()) co_return instance_failed(*instance, opened.status());
  auto exchange = std::move(opened).value();
  instance->first_byte.record(since(sent));
  const Status status = co_await read_whole(*exchange, kPrefillAnswerAtMost, patience, deadline_.sooner(patience), cancellation_);
  if (!status.ok()) co_return instance_failed(*instance, status);
  const unsigned code = exchange->answer.status;
  if (code < 200 || code >= 500 || (code >= 300 && code < 400)) co_return instance_failed(*instance, status_failure(*instance, code));
  instance->succeeded();
  instance->total.record(since(sent));
  record_.prefill = instance->name().to_string();
  if (code >= 400) {
    co_return co_await send_answer(*exchange);
  }
  hand_over(exchange->answer.body, mooncake_params);
  if (wants_tokens()) learn_tokens(exchange->answer.body);
  pool_.release(std::move(exchange));
  co_return Turn::kFailed;
}

bool Relay::wants_tokens() {
  const auto wants = [this](const std::shared_ptr<LearnedPrompts>& prompts) { return prompts != nullptr && prompts->wants(prompt_); };
  return wants(state_.prefill_prompts) || wants(state_.decode_prompts);
}

void Relay::learn_tokens(std::string_view answer) {
  const auto tokens = parse_token_ids(prompt_token_ids_of(answer));
  for (const auto& prompts : {state_.prefill_prompts, state_.decode_prompts}) {
    if (prompts != nullptr) prompts->learn(prompt_, tokens);
  }
}

Task<Relay::Turn> Relay::decode_on(const std::shared_ptr<Instance>& instance) {
  const Instance::InFlight in_flight(instance);
  const Time sent = RequestRecord::Clock::now();
  const bool resumed = record_.status != 0;  // the client has the beginning of a stream from another one
  auto opened = co_await open(*instance, decode_body(), {state_.settings().timeouts.first_byte, "--first-byte-timeout"});
  if (!opened.ok()) co_return instance_failed(*instance, opened.status());
  auto exchange = std::move(opened).value();
  if (exchange->answer.status >= 500) {
    const TimeLimit soon = deadline_.sooner({state_.settings().timeouts.connect});  // its text is nice to have, not worth waiting for
    const Status whole = co_await read_whole(*exchange, kErrorAnswerAtMost, soon.patience, soon, cancellation_);
    if (!whole.ok()) log::debug("request {}: {}", record_.id, whole.message());
    const unsigned code = exchange->answer.status;
    co_return instance_failed(*instance, status_failure(*instance, code), std::move(exchange));
  }
  record_.decode = instance->name().to_string();
  if (exchange->answer.status < 300 && exchange->answer.is_event_stream()) co_return co_await stream(*instance, std::move(exchange), sent);
  if (resumed) {
    // It understood the connection and not the continuation: that is nobody's failure, and no other would take it.
    failure_ = Failure{Status(ErrorCode::kNotSupported, instance->name().to_string() + " answered the continuation with HTTP " +
                                                            std::to_string(exchange->answer.status)),
                       instance->name().to_string(), nullptr};
    static_cast<void>(co_await end_cut_stream("the continuation was refused"));
    co_return Turn::kAnswered;
  }
  co_return co_await whole_answer(*instance, std::move(exchange), sent);
}

Task<Result<std::unique_ptr<Exchange>>> Relay::open(Instance& instance, std::string_view body, Patience patience,
                                                    std::string_view more_fields) {
  std::string hop_fields = record_.spans ? record_.trace.hop_field(record_.spans->hops.back().id) : record_.trace.hop_field();
  hop_fields.append(more_fields);
  const UpstreamRequest request{
      upstream_request_head(request_.method_text, request_.target, instance.name().authority(), forwarded_fields_, body.size(), hop_fields),
      body};
  const ExchangeDeadlines deadlines{{state_.settings().timeouts.connect, "--connect-timeout"}, deadline_.sooner(patience)};
  auto opened = co_await pool_.open(instance.name(), request, deadlines, cancellation_);
  if (record_.spans && opened.ok()) record_.spans->hops.back().status = (*opened)->answer.status;
  co_return std::move(opened);
}

void Relay::begin_hop(const Instance& instance) {
  if (!record_.spans) return;
  auto& hop = record_.spans->hops.emplace_back();
  hop.role = instance.role();
  hop.instance = instance.name().to_string();
  hop.begun = RequestRecord::Clock::now();
}

void Relay::end_hop() {
  if (record_.spans) record_.spans->hops.back().ended = RequestRecord::Clock::now();
}

Relay::Turn Relay::instance_failed(Instance& instance, Status reason, std::unique_ptr<Exchange> answer) {
  if (cancellation_.cancelled() || reason.code() == ErrorCode::kCancelled) return Turn::kClientGone;
  // The request's own time ran out, perhaps with others: this one had what was left of it.
  const bool timed_out = reason.code() == ErrorCode::kRpcTimeout && deadline_.expired();
  if (record_.spans) record_.spans->hops.back().error = reason.message();
  log::info("request {}: {} instance {} failed: {}", record_.id, instance.role(), instance.name().to_string(), reason.message());
  failure_ = Failure{std::move(reason), instance.name().to_string(), std::move(answer)};
  if (may_be_the_blocks(*failure_)) {
    state_.counters.kv_not_taken.fetch_add(1, std::memory_order_relaxed);
  } else if (!timed_out) {
    instance.failed(failure_->reason);
  }
  return Turn::kFailed;
}

Task<Relay::Turn> Relay::whole_answer(Instance& instance, std::unique_ptr<Exchange> exchange, Time sent) {
  const bool ends_with_connection = exchange->answer.need_eof();
  instance.first_byte.record(since(sent));
  instance.answering();
  Status status = co_await read_whole(*exchange, state_.settings().limits.buffered_answer_bytes, between_bytes(), deadline_, cancellation_);
  if (status.code() == ErrorCode::kBufferOverflow) co_return co_await pass_through(instance, std::move(exchange), sent);
  if (status.ok() && ends_with_connection && is_json(exchange->answer) && !is_whole_json(exchange->answer.body)) {
    status = Status(ErrorCode::kUnavailable, instance.name().to_string() + " closed the connection within its answer");
  }
  if (!status.ok()) co_return instance_failed(instance, status);
  instance.succeeded();
  instance.total.record(since(sent));
  if (record_.count_tokens) record_.tokens = usage_tokens(exchange->answer.body);
  const Turn turn = co_await send_answer(*exchange);
  pool_.release(std::move(exchange));
  co_return turn;
}

// An answer too long to be held: passed on as it comes. Cut short, it misses its last chunk or the end of its length.
Task<Relay::Turn> Relay::pass_through(Instance& instance, std::unique_ptr<Exchange> exchange, Time sent) {
  ResponseParser& answer = exchange->answer;
  AnswerShape shape{Framing::kChunked, 0, keeps_alive(), record_.id, record_.limit_fields};
  if (const auto length = answer.content_length(); length) {
    shape.framing = Framing::kLength;
    shape.body_bytes = static_cast<std::size_t>(*length);
  } else if (request_.version != 11) {
    shape.framing = Framing::kUntilClose;
    keep_alive_ = false;
  }
  const bool chunked = shape.framing == Framing::kChunked;
  record_.status = answer.status;
  const std::string head = relayed_response_head(answer, shape);
  const bool head_written = co_await write(head);
  if (!head_written) co_return Turn::kClientGone;
  for (;;) {
    const std::string piece = std::exchange(answer.body, {});
    if (!piece.empty()) {
      if (record_.count_tokens && !record_.tokens) record_.tokens = usage_tokens(piece);
      std::string piece_head;
      if (chunked) piece_head = chunk_head(piece.size());
      const bool written = co_await write(piece_head, piece, chunked ? "\r\n" : "");
      if (!written) co_return Turn::kClientGone;
    }
    if (answer.is_done()) break;
    const Cancellation::Scope scope(cancellation_, *exchange->connection);
    const Status status = co_await exchange->connection->read(answer, deadline_.sooner(between_bytes()));
    if (status.ok()) continue;
    if (cancellation_.cancelled()) co_return Turn::kClientGone;
    instance.failed(status);
    record_.cut = true;
    record_.error = status.message();
    state_.counters.cut.fetch_add(1, std::memory_order_relaxed);
    co_return Turn::kAnswered;
  }
  if (chunked) {
    const bool written = co_await write(kLastChunk);
    if (!written) co_return Turn::kClientGone;
  }
  instance.succeeded();
  instance.total.record(since(sent));
  pool_.release(std::move(exchange));
  co_return Turn::kAnswered;
}

Task<Relay::Turn> Relay::send_answer(Exchange& exchange) {
  record_.status = exchange.answer.status;
  const AnswerShape shape{Framing::kLength, exchange.answer.body.size(), keeps_alive(), record_.id, record_.limit_fields};
  const std::string head = relayed_response_head(exchange.answer, shape);
  const bool written = co_await write(head, exchange.answer.body);
  co_return written ? Turn::kAnswered : Turn::kClientGone;
}

Task<bool> Relay::give_up(const Group& group, std::string tried) {
  if (cancellation_.cancelled()) co_return co_await finish(Turn::kClientGone);
  if (record_.status != 0) {
    static_cast<void>(co_await end_cut_stream("no instance is left to continue it: " + tried));
    co_return co_await finish(Turn::kAnswered);
  }
  if (tried.empty()) {
    state_.counters.failed.fetch_add(1, std::memory_order_relaxed);
    std::string message = "there is no " + group.role() + " instance: start the gateway with --" + group.role() +
                          " host:port, or add one with POST /instances/add";
    co_return co_await send_error(503, std::move(message), "Retry-After: 5\r\n");
  }
  record_.error = failure_->reason.message();
  if (failure_->answer != nullptr && failure_->answer->answer.is_done()) {
    const Turn turn = co_await send_answer(*failure_->answer);
    co_return co_await finish(turn);
  }
  state_.counters.failed.fetch_add(1, std::memory_order_relaxed);
  const unsigned code = failure_->reason.code() == ErrorCode::kRpcTimeout ? 504 : 502;
  std::string message = "the " + group.role() + " instance " + failure_->instance + " failed: " + failure_->reason.message() + " (" +
                        tried + "). Send the request again; GET /status shows the state of all instances";
  co_return co_await send_error(code, std::move(message));
}

Task<bool> Relay::send_error(unsigned status, std::string message, std::string_view extra_fields) {
  record_.status = status;
  if (record_.error.empty()) record_.error = message;
  const std::string body = openai_error(status, message);
  const std::string head = own_response_head(status, "application/json", {Framing::kLength, body.size(), keeps_alive(), record_.id},
                                             record_.limit_fields + std::string(extra_fields));
  const bool written = co_await write(head, body);
  co_return written&& keep_alive_;
}

Task<bool> Relay::write(std::string_view head, std::string_view body, std::string_view tail) {
  if (record_.first_byte == Time{}) record_.first_byte = RequestRecord::Clock::now();
  co_return co_await client_.write(head, body, tail);
}

}  // namespace moonpool::gateway
