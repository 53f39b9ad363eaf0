// The part of Relay that passes a stream on, and carries it over to another instance when its own fails.
#include <utility>

#include "base/logging.h"
#include "gateway/relay.h"
#include "gateway/request_cost.h"

namespace moonpool::gateway {

namespace {

constexpr std::chrono::seconds kPatienceAfterDone{1};  // the answer is whole: its connection is not worth more

// The time between a stream's data events: one clock read for each read that brought some. Those that came together lie 0 apart.
class EventGaps {
 public:
  explicit EventGaps(LatencyHistogram& gaps) : gaps_(gaps) {}

  // So many have come by now.
  void note(std::uint64_t events) {
    if (events == events_) return;
    const auto now = RequestRecord::Clock::now();
    if (events_ != 0) gaps_.record(now - last_);
    if (const std::uint64_t together = events - events_ - 1; together > 0) gaps_.record(std::chrono::nanoseconds(0), together);
    events_ = events;
    last_ = now;
  }

 private:
  LatencyHistogram& gaps_;
  std::uint64_t events_ = 0;
  RequestRecord::Time last_;
};

}  // namespace

// The bytes pass as they arrive; the head waits for the first of them, because until then another instance can still be asked.
Task<Relay::Turn> Relay::stream(Instance& instance, std::unique_ptr<Exchange> exchange, Time sent) {
  const auto& timeouts = state_.settings().timeouts;
  ResponseParser& answer = exchange->answer;
  const bool resumed = record_.status != 0;
  bool begun = false;
  SseStream events;
  EventGaps gaps(instance.between_events);
  const std::uint64_t events_before = record_.answer_events;
  Status status;
  for (;;) {
    const bool ended = answer.is_done() || !status.ok();
    std::string ready = stream_bytes(events, instance, std::exchange(answer.body, {}), ended, status);
    gaps.note(events.data_events());
    if (record_.count_tokens && !ready.empty()) {
      record_.answer_events = events_before + events.data_events();
      if (const auto tokens = usage_tokens(ready)) record_.tokens = tokens;
    }
    const bool over = ended || !status.ok();
    const bool complete = over && events.done();
    if (!ready.empty() && !std::exchange(begun, true)) {
      instance.first_byte.record(RequestRecord::Clock::now() - sent);
      instance.answering();
      if (resumed) {
        state_.counters.continued.fetch_add(1, std::memory_order_relaxed);
        record_.error.clear();
        ready.insert(0, continued_mark());
      }
    }
    if (!ready.empty() || complete) {
      const Framed framed = frame(answer, ready.size(), complete);
      const bool written = co_await write(framed.head, ready, framed.tail);
      if (!written) co_return Turn::kClientGone;
      between_events_ = resumed || events.between_events();
      mid_line_ = events.mid_line();
      if (continuation_) continuation_->sent(ready);
    }
    if (complete) break;
    if (over) {
      if (status.ok()) status = Status(ErrorCode::kUnavailable, instance.name().to_string() + " ended its stream before the final event");
      co_return co_await stream_failed(instance, std::move(status));
    }
    const Cancellation::Scope scope(cancellation_, *exchange->connection);
    TimeLimit limit = deadline_.sooner(events.done() ? Patience(kPatienceAfterDone) : between_bytes());
    if (!begun) limit = deadline_.sooner({timeouts.first_byte - (RequestRecord::Clock::now() - sent), "--first-byte-timeout"});
    if (!begun) limit.patience.allowed = timeouts.first_byte;
    status = co_await exchange->connection->read(answer, limit);
  }
  instance.succeeded();
  instance.total.record(RequestRecord::Clock::now() - sent);
  pool_.release(std::move(exchange));
  co_return Turn::kAnswered;
}

// What of the bytes just received the client may have. `status` becomes the stream's failure where they tell of one.
std::string Relay::stream_bytes(SseStream& events, const Instance& instance, std::string bytes, bool over, Status& status) {
  std::string ready = events.feed(std::move(bytes));
  if (over && (events.done() || events.mid_line())) ready += events.finish();
  if (events.has_error()) {
    const unsigned code = status_in_error(events.error());
    if (code >= 400 && code < 500) {
      ready += events.pass_error();
    } else if (status.ok()) {
      status = Status(ErrorCode::kRpcFail,
                      instance.name().to_string() + " reported an error within its stream: " + std::string(events.error().substr(0, 300)));
    }
  }
  if (record_.status == 0 || continued_body_.empty() || ready.empty()) return ready;
  auto fitted = continuation_->rewrite(ready);
  if (fitted.ok()) return std::move(fitted).value();
  status = Status(fitted.code(), instance.name().to_string() + ": " + fitted.status().message());
  return {};
}

// Head and tail around `bytes` on their way to the client; the first ones bring the answer's own head.
Relay::Framed Relay::frame(const ResponseParser& answer, std::size_t bytes, bool last) {
  const bool chunked = request_.version == 11;
  Framed framed;
  if (record_.status == 0) {
    if (!chunked) keep_alive_ = false;
    framed.head = relayed_response_head(
        answer, {chunked ? Framing::kChunked : Framing::kUntilClose, 0, keeps_alive(), record_.id, record_.limit_fields});
    record_.status = answer.status;
    is_stream_ = true;
  }
  if (!chunked) return framed;
  if (bytes == 0) {
    framed.tail = kLastChunk;
    return framed;
  }
  framed.head += chunk_head(bytes);
  framed.tail = last ? "\r\n0\r\n\r\n" : "\r\n";
  return framed;
}

// kFailed: the next instance is to be asked, from the beginning or from where the client is.
Task<Relay::Turn> Relay::stream_failed(Instance& instance, Status status) {
  const bool differs = status.code() == ErrorCode::kNotSupported;
  const std::string name = instance.name().to_string();
  if (differs) {
    if (record_.spans) record_.spans->hops.back().error = status.message();
    failure_ = Failure{std::move(status), name, nullptr};  // a correct instance may make other tokens: no blame
  } else if (instance_failed(instance, std::move(status)) == Turn::kClientGone) {
    co_return Turn::kClientGone;
  }
  if (record_.status == 0) co_return Turn::kFailed;
  std::string why = "it may not be continued by another instance (--continue-streams, temperature 0)";
  if (continuation_ && continuation_->finished()) {
    // Nothing was lost but the end.
    const std::string_view end = between_events_ ? "data: [DONE]\n\n" : "\ndata: [DONE]\n\n";
    const Framed framed = frame(ResponseParser(), end.size(), true);
    const bool written = co_await write(framed.head, end, framed.tail);
    co_return written ? Turn::kAnswered : Turn::kClientGone;
  }
  if (continuation_) {
    auto body = differs ? Result<std::string>(failure_->reason) : continuation_->next_body();
    if (body.ok()) {
      continued_body_ = std::move(body).value();
      // The blocks that the prefill instance kept were fetched by the one that failed: the next one computes the prompt (kv_transfer.h).
      if (!decode_body_.empty()) continued_body_ = with_kv_transfer_params(continued_body_, {});
      co_return Turn::kFailed;
    }
    why = "another instance cannot continue it: " + body.status().message();
  }
  static_cast<void>(co_await end_cut_stream(std::move(why)));
  co_return Turn::kAnswered;
}

std::string Relay::continued_mark() const {
  std::string mark = between_events_ ? "" : "\n";
  const std::string tokens = std::to_string(continuation_->tokens_sent());
  switch (state_.settings().continue_marker) {
    case ContinueMarker::kOff:
      return mark;
    case ContinueMarker::kComment:
      return mark + ": continued by another instance after " + tokens + " tokens\n\n";
    case ContinueMarker::kEvent:
      return mark + "event: continued\ndata: {\"object\":\"moonpool.continued\",\"tokens_sent\":" + tokens + ",\"choices\":[]}\n\n";
  }
  return mark;
}

// The client has part of a stream that cannot go on: an event says so, and the connection closes without the last chunk.
Task<bool> Relay::end_cut_stream(std::string why_not_continued) {
  record_.cut = true;
  record_.error = failure_->reason.message();
  state_.counters.cut.fetch_add(1, std::memory_order_relaxed);
  const std::string message = "the decode instance " + failure_->instance +
                              " failed within its answer, which is incomplete: " + failure_->reason.message() + "; " + why_not_continued +
                              ". Send the request again";
  co_return co_await write_error_event(message);
}

Task<bool> Relay::write_error_event(std::string_view message) {
  const std::string event = (mid_line_ ? "\n\ndata: " : between_events_ ? "data: " : "\ndata: ") + openai_error(502, message) + "\n\n";
  if (request_.version != 11) co_return co_await write(event);
  co_return co_await write(chunk_head(event.size()), event, "\r\n");
}

}  // namespace moonpool::gateway
