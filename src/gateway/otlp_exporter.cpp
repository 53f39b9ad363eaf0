#include "gateway/otlp_exporter.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <charconv>
#include <iterator>

#include "base/logging.h"

namespace moonpool::gateway {

namespace {

constexpr std::chrono::seconds kBetweenBatches{1};
constexpr std::chrono::seconds kPostTime{10};
constexpr std::chrono::seconds kStopTime{2};
constexpr std::chrono::seconds kLongestRetryAfter{30};
constexpr std::chrono::seconds kConnectionIdle{4};
constexpr std::size_t kAnswerAtMost = std::size_t{1} << 20;

bool is_put_off(unsigned status) { return status == 429 || status == 502 || status == 503 || status == 504; }

// A date instead of seconds counts as one second.
std::chrono::seconds retry_after(const ResponseParser& answer) {
  const std::string_view text = answer.headers.get(http::field::retry_after);
  unsigned seconds = 1;
  std::from_chars(text.data(), text.data() + text.size(), seconds);
  return std::min(std::chrono::seconds(seconds), kLongestRetryAfter);
}

// rejectedSpans of a partial success; 64-bit numbers are strings in this JSON, but not everywhere.
std::size_t refused_spans(std::string_view body) {
  boost::system::error_code error;
  const auto document = boost::json::parse(boost::json::string_view(body.data(), body.size()), error);
  const auto* partial = error || !document.is_object() ? nullptr : document.get_object().if_contains("partialSuccess");
  const auto* refused = partial == nullptr || !partial->is_object() ? nullptr : partial->get_object().if_contains("rejectedSpans");
  if (refused == nullptr) return 0;
  std::size_t count = 0;
  if (refused->is_int64() && refused->get_int64() > 0) return static_cast<std::size_t>(refused->get_int64());
  if (refused->is_string()) {
    const auto& text = refused->get_string();
    std::from_chars(text.data(), text.data() + text.size(), count);
  }
  return count;
}

}  // namespace

OtlpExporter::OtlpExporter(HttpEndpoint collector, std::string service_name, Counters& counters, Resolver& resolver, const TlsKeeper& tls)
    : collector_(std::move(collector)),
      service_name_(std::move(service_name)),
      counters_(counters),
      pool_(context_.get_executor(), resolver, kConnectionIdle, 1, tls),
      timer_(context_.get_executor()) {
  asio::co_spawn(context_.get_executor(), run(), asio::detached);
  thread_ = std::thread([this] { context_.run(); });
}

OtlpExporter::~OtlpExporter() { stop(); }

void OtlpExporter::add(std::vector<Span> spans) {
  std::size_t dropped = 0;
  bool batch_is_full = false;
  {
    const std::lock_guard lock(mutex_);
    const std::size_t taken = std::min(spans.size(), kBufferedAtMost - waiting_.size());
    dropped = spans.size() - taken;
    batch_is_full = waiting_.size() < kBatch && waiting_.size() + taken >= kBatch;
    waiting_.insert(waiting_.end(), std::make_move_iterator(spans.begin()),
                    std::make_move_iterator(spans.begin() + static_cast<std::ptrdiff_t>(taken)));
  }
  if (dropped != 0) counters_.spans_dropped.fetch_add(dropped, std::memory_order_relaxed);
  if (batch_is_full) asio::post(context_, [this] { timer_.cancel(); });
}

void OtlpExporter::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  asio::post(context_, [this] {
    timer_.cancel();
    auto last = std::make_shared<Timer>(context_.get_executor(), kStopTime);
    last->async_wait([this, last](const boost::system::error_code&) { context_.stop(); });
  });
  thread_.join();
  const std::lock_guard lock(mutex_);
  counters_.spans_dropped.fetch_add(waiting_.size(), std::memory_order_relaxed);
  waiting_.clear();
}

std::vector<Span> OtlpExporter::take_batch() {
  const std::lock_guard lock(mutex_);
  const auto end = waiting_.begin() + static_cast<std::ptrdiff_t>(std::min(kBatch, waiting_.size()));
  std::vector<Span> batch(std::make_move_iterator(waiting_.begin()), std::make_move_iterator(end));
  waiting_.erase(waiting_.begin(), end);
  return batch;
}

Task<void> OtlpExporter::run() {
  for (;;) {
    bool stopping = false;
    std::size_t waiting = 0;
    {
      const std::lock_guard lock(mutex_);
      stopping = stopping_;
      waiting = waiting_.size();
    }
    if (waiting == 0 && stopping) break;
    if (waiting < kBatch && !stopping) {
      timer_.expires_after(kBetweenBatches);
      co_await timer_.async_wait(kAwait);
    }
    std::vector<Span> batch = take_batch();
    if (!batch.empty()) co_await send(std::move(batch));
  }
  context_.stop();
}

Task<void> OtlpExporter::send(std::vector<Span> spans) {
  const std::string body = otlp_json(service_name_, spans);
  const std::size_t count = spans.size();
  spans.clear();
  Outcome outcome = co_await post(body, count);
  if (outcome.retry_after) {
    timer_.expires_after(*outcome.retry_after);
    co_await timer_.async_wait(kAwait);
    outcome = co_await post(body, count);
  }
  counters_.spans_dropped.fetch_add(outcome.refused, std::memory_order_relaxed);
  counters_.spans_exported.fetch_add(count - outcome.refused, std::memory_order_relaxed);
  if (!outcome.error.empty() && outcome.error != last_error_) {
    log::warning("{} spans were not taken by {}: {}", outcome.refused, collector_.name.to_string(), outcome.error);
  }
  last_error_ = outcome.error;
}

Task<OtlpExporter::Outcome> OtlpExporter::post(std::string_view body, std::size_t spans) {
  Outcome outcome;
  outcome.refused = spans;
  const Deadline deadline = Deadline::after(kPostTime);
  const UpstreamRequest request{upstream_request_head("POST", collector_.path + "/v1/traces", collector_.name.authority(),
                                                      "Content-Type: application/json\r\n", body.size()),
                                body};
  auto opened = co_await pool_.open(collector_.name, request, {deadline.left(), deadline}, never_);
  if (!opened.ok()) {
    outcome.error = opened.status().message();
    co_return outcome;
  }
  auto exchange = std::move(opened).value();
  const Status whole = co_await read_whole(*exchange, kAnswerAtMost, deadline.left(), deadline, never_);
  const unsigned status = exchange->answer.status;
  if (!whole.ok()) {
    outcome.error = whole.message();
  } else if (status >= 200 && status < 300) {
    outcome.refused = std::min(spans, refused_spans(exchange->answer.body));
    if (outcome.refused != 0) outcome.error = "the collector refused a part";
  } else {
    outcome.error = "HTTP " + std::to_string(status);
    if (is_put_off(status)) outcome.retry_after = retry_after(exchange->answer);
  }
  if (whole.ok()) pool_.release(std::move(exchange));
  co_return outcome;
}

}  // namespace moonpool::gateway
