#include "gateway/session.h"

#include <chrono>
#include <ctime>
#include <optional>

#include "base/logging.h"
#include "gateway/access.h"
#include "gateway/admin.h"
#include "gateway/metrics.h"
#include "gateway/models.h"
#include "gateway/otlp_exporter.h"
#include "gateway/relay.h"
#include "gateway/request_record.h"
#include "gateway/status.h"
#include "gateway/trace_context.h"

namespace moonpool::gateway {

namespace {

enum class Route { kCompletion, kPassOn, kModels, kHealth, kReady, kStatus, kMetrics, kInstances, kAdd, kRemove, kSetRole };

struct RouteEntry {
  std::string_view path;
  http::verb method;
  Route route;
};

constexpr RouteEntry kRoutes[] = {
    {"/v1/completions", http::verb::post, Route::kCompletion},
    {"/v1/chat/completions", http::verb::post, Route::kCompletion},
    {"/v1/models", http::verb::get, Route::kModels},
    // One hop to a decode instance, as anything else below /v1/ gets it too.
    {"/v1/responses", http::verb::post, Route::kPassOn},
    {"/v1/embeddings", http::verb::post, Route::kPassOn},
    {"/v1/rerank", http::verb::post, Route::kPassOn},
    {"/v1/score", http::verb::post, Route::kPassOn},
    {"/v2/rerank", http::verb::post, Route::kPassOn},
    {"/rerank", http::verb::post, Route::kPassOn},
    {"/score", http::verb::post, Route::kPassOn},
    {"/tokenize", http::verb::post, Route::kPassOn},
    {"/detokenize", http::verb::post, Route::kPassOn},
    {"/health", http::verb::get, Route::kHealth},
    {"/ready", http::verb::get, Route::kReady},
    {"/status", http::verb::get, Route::kStatus},
    {"/metrics", http::verb::get, Route::kMetrics},
    {"/instances", http::verb::get, Route::kInstances},
    {"/instances/add", http::verb::post, Route::kAdd},
    {"/instances/remove", http::verb::post, Route::kRemove},
    {"/instances/role", http::verb::post, Route::kSetRole},
};

// What a client calls its request, when it is fit for a log line and a header; else a short random one.
std::string request_id_of(const RequestParser& request) {
  const std::string_view given = request.headers.get("x-request-id");
  bool printable = !given.empty() && given.size() <= 128;
  for (const char c : given) printable = printable && c > ' ' && c < 0x7F;
  return printable ? std::string(given) : random_request_id();
}

// Milliseconds after the request's arrival, "-" for a stage that was not reached.
std::string stage_ms(const RequestRecord& record, RequestRecord::Time stage) {
  if (stage == RequestRecord::Time{}) return "-";
  return fmt::format("{:.1f}", std::chrono::duration<double, std::milli>(stage - record.received).count());
}

// The wall clock at a moment of the steady one, in UTC.
std::string utc_text(RequestRecord::Time moment) {
  const auto age = std::chrono::duration_cast<std::chrono::system_clock::duration>(RequestRecord::Clock::now() - moment);
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>((std::chrono::system_clock::now() - age).time_since_epoch()).count();
  const std::time_t seconds = ms / 1000;
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday, parts.tm_hour,
                     parts.tm_min, parts.tm_sec, ms % 1000);
}

void log_access(const RequestRecord& record, const GatewayState& state) {
  const bool wrong = record.status >= 500 || record.cut;
  auto level = state.settings().access_log ? spdlog::level::info : spdlog::level::debug;
  if (wrong) level = spdlog::level::warn;
  if (!log::logger().should_log(level)) return;
  log::logger().log(
      level,
      "{} {} {} id={} trace={} key={} prefill={} decode={} attempts={} received={} queue_ms={} prefill_done_ms={} first_byte_ms={} "
      "last_byte_ms={}{}{}{}",
      record.method, record.path, record.status, record.id, record.trace.trace_id(), record.key.empty() ? "-" : record.key,
      record.prefill.empty() ? "-" : record.prefill, record.decode.empty() ? "-" : record.decode, record.attempts,
      utc_text(record.received), stage_ms(record, record.hops_started), stage_ms(record, record.prefill_done),
      stage_ms(record, record.first_byte), stage_ms(record, record.done), record.decode_first ? " decode_first" : "",
      record.client_gone ? " client_gone"
      : record.cut       ? " cut"
                         : "",
      record.error.empty() ? "" : " error=\"" + record.error + "\"");
}

class Session {
 public:
  Session(ClientConnection& client, GatewayState& state, UpstreamPool& pool) : client_(client), state_(state), pool_(pool) {}

  // One request. False when the connection ends with it.
  Task<bool> serve() {
    const Settings& at_start = state_.settings();
    client_.set_timeouts(at_start.timeouts);
    RequestParser request(at_start.limits.header_bytes, at_start.limits.body_bytes);
    // Who may not ask need not send: a stranger's bodies would fill the memory.
    std::optional<Reply> refusal;
    const auto wants_body = [&] {
      if (!request.path().starts_with("/instances")) refusal = client_access(state_, request).refusal;
      return !refusal;
    };
    const auto received = co_await client_.read_request(request, wants_body);
    client_.set_timeouts(state_.settings().timeouts);
    if (refusal) {
      RequestRecord record;
      record.id = request_id_of(request);
      record.method = request.method_text;
      record.path = std::string(request.path());
      static_cast<void>(co_await unauthorized(record, std::move(*refusal), false));
      record.done = RequestRecord::Clock::now();
      log_access(record, state_);
      co_await client_.close_gently();
      co_return false;
    }
    if (!received.got) {
      if (received.error_status != 0) co_await refuse_bytes(received);
      co_return false;
    }
    RequestRecord record;
    record.id = request_id_of(request);
    record.trace = TraceContext::of(request.headers, state_.settings().sample_traces);
    if (state_.otlp != nullptr && record.trace.sampled()) record.spans = std::make_unique<RequestSpans>();
    record.method = request.method_text;
    record.path = std::string(request.path());
    const bool keep_alive = request.keep_alive() && request.version == 11 && !state_.stopping.load(std::memory_order_relaxed);
    const bool again = co_await dispatch(request, record, keep_alive);
    record.done = RequestRecord::Clock::now();
    log_access(record, state_);
    // Not for those who look at the gateway itself every few seconds.
    const bool has_story = record.hops_started != RequestRecord::Time{} || record.method != "GET";
    if (record.spans && has_story) state_.otlp->add(spans_of(record, request.body));
    if (!again && !record.client_gone) co_await client_.close_gently();
    co_return again;
  }

 private:
  Task<bool> dispatch(const RequestParser& request, RequestRecord& record, bool keep_alive) {
    const RouteEntry* by_path = nullptr;
    for (const RouteEntry& entry : kRoutes) {
      if (entry.path == record.path) by_path = &entry;
    }
    if (by_path == nullptr && record.path.starts_with("/v1/")) co_return co_await unknown_v1(request, record, keep_alive);
    if (by_path == nullptr) {
      Reply unknown{404, openai_error(404, "there is no " + shown(record.path) + " here: the gateway has " + paths())};
      co_return co_await reply(record, std::move(unknown), keep_alive, {});
    }
    if (by_path->method != request.method) {
      const std::string method(by_path->method == http::verb::post ? "POST" : "GET");
      Reply wrong{405, openai_error(405, record.path + " takes " + method + ", not " + shown(request.method_text))};
      co_return co_await reply(record, std::move(wrong), keep_alive, "Allow: " + method + "\r\n");
    }
    switch (by_path->route) {
      case Route::kCompletion: {
        const bool again = co_await relayed(true, request, record, keep_alive);
        if (record.status != 0 && record.status < 400) state_.counters.first_byte.record(record.first_byte - record.received);
        co_return again;
      }
      case Route::kPassOn:
        co_return co_await relayed(false, request, record, keep_alive);
      case Route::kModels:
        co_return co_await models(request, record, keep_alive);
      case Route::kAdd:
      case Route::kRemove:
      case Route::kSetRole:
        co_return co_await administrate(by_path->route, request, record, keep_alive);
      default:
        break;
    }
    if (by_path->route != Route::kHealth && by_path->route != Route::kReady) {
      auto access = status_access(state_, request);
      if (access.refusal) co_return co_await unauthorized(record, std::move(*access.refusal), keep_alive);
    }
    Reply own = own_reply(by_path->route, request);
    co_return co_await reply(record, std::move(own), keep_alive, {});
  }

  // One hop, to whoever answers clients: decode, or prefill where there is nothing else.
  [[nodiscard]] Group& answering_group() const { return state_.decode.empty() ? state_.prefill : state_.decode; }

  // To the instances, as soon as its key and the load allow it. Only a POST makes them work: the others need no place.
  Task<bool> relayed(bool completion, const RequestParser& request, RequestRecord& record, bool keep_alive) {
    auto access = client_access(state_, request);
    if (access.refusal) co_return co_await unauthorized(record, std::move(*access.refusal), keep_alive);
    if (access.key != nullptr) record.key = access.key->name;
    if (const std::string_view given = request.headers.get("x-request-timeout-ms"); !given.empty()) {
      const auto allowed = parse_timeout_ms(given);
      if (!allowed) {
        Reply wrong{400, openai_error(400, "X-Request-Timeout-Ms has to be a whole number of milliseconds from 1 to 86400000")};
        co_return co_await reply(record, std::move(wrong), keep_alive, {});
      }
      record.deadline = record.received + *allowed;
    }
    std::unique_ptr<Admission::Place> place;
    if (state_.admission.active() && request.method == http::verb::post) {
      Cancellation cancellation;
      client_.watch(cancellation);
      auto entry = co_await state_.admission.enter(access.key, request.body, record.deadline, cancellation);
      client_.unwatch();
      if (entry.refusal) co_return co_await shed(record, *entry.refusal, keep_alive);
      if (entry.place == nullptr && client_.interrupted()) {
        record.error = "the gateway was stopped while this request waited (--drain-timeout). Send the request again";
        Reply stopped{503, openai_error(503, record.error)};
        co_return co_await reply(record, std::move(stopped), false, "Retry-After: 1\r\n");
      }
      if (entry.place == nullptr) {
        record.client_gone = true;
        state_.counters.client_gone.fetch_add(1, std::memory_order_relaxed);
        co_return false;
      }
      place = std::move(entry.place);
      record.limit_fields = place->limit_fields();
      record.count_tokens = true;
    }
    Relay relay(state_, pool_, client_, request, record, keep_alive);
    bool again = false;
    if (completion) {
      again = co_await relay.completion();
    } else {
      again = co_await relay.forward(answering_group());
    }
    if (place != nullptr) place->end(tokens_of(record, place->prompt_tokens()));
    co_return again;
  }

  // What a request has cost: as its answer says, else its prompt's estimate and a token for each event. Nothing when nobody served it.
  static std::uint64_t tokens_of(const RequestRecord& record, std::uint64_t prompt_tokens) {
    if (record.tokens) return *record.tokens;
    if (record.status >= 400 && record.answer_events == 0) return 0;
    return prompt_tokens + record.answer_events;
  }

  Task<bool> shed(RequestRecord& record, const Admission::Refusal& refusal, bool keep_alive) {
    record.error = refusal.message;
    const bool rate = refusal.cause == Shed::kRequestRate || refusal.cause == Shed::kTokenRate;
    Reply answer{refusal.status, openai_error(refusal.status, refusal.message, rate ? "rate_limit_exceeded" : name_of(refusal.cause))};
    answer.fields = refusal.fields;
    co_return co_await reply(record, std::move(answer), keep_alive, {});
  }

  Task<bool> unauthorized(RequestRecord& record, Reply refusal, bool keep_alive) {
    state_.counters.unauthorized.fetch_add(1, std::memory_order_relaxed);
    co_return co_await reply(record, std::move(refusal), keep_alive, {});
  }

  // What the gateway does not know is the instance's to answer, as long as its answer has a body where HTTP says so.
  Task<bool> unknown_v1(const RequestParser& request, RequestRecord& record, bool keep_alive) {
    const bool plain = request.method == http::verb::get || request.method == http::verb::post || request.method == http::verb::delete_;
    if (plain) co_return co_await relayed(false, request, record, keep_alive);
    Reply wrong{405, openai_error(405, shown(record.path) + " is passed on with GET, POST and DELETE, not " + shown(request.method_text))};
    co_return co_await reply(record, std::move(wrong), keep_alive, "Allow: GET, POST, DELETE\r\n");
  }

  Task<bool> models(const RequestParser& request, RequestRecord& record, bool keep_alive) {
    const Group& group = answering_group();
    if (group.snapshot()->size() < 2) co_return co_await relayed(false, request, record, keep_alive);
    auto access = client_access(state_, request);
    if (access.refusal) co_return co_await unauthorized(record, std::move(*access.refusal), keep_alive);
    Cancellation cancellation;
    client_.watch(cancellation);
    std::string fields =
        forwarded_request_fields(request.headers, record.id, record.trace.came_with_request(), state_.authorization_for_instances());
    Reply answer = co_await merged_models(state_, pool_, group, std::move(fields), record.trace, cancellation);
    client_.unwatch();
    co_return co_await reply(record, std::move(answer), keep_alive, {});
  }

  [[nodiscard]] Reply own_reply(Route route, const RequestParser& request) const {
    if (route == Route::kHealth) return health_reply(state_);
    if (route == Route::kReady) return ready_reply(state_);
    if (route == Route::kMetrics) return {200, metrics_text(state_), kMetricsContentType};
    return route == Route::kInstances ? instances_reply(state_) : status_reply(state_, request);
  }

  static std::string paths() {
    std::string all;
    for (const RouteEntry& entry : kRoutes) all.append(all.empty() ? "" : ", ").append(entry.path);
    return all;
  }

  Task<bool> administrate(Route route, const RequestParser& request, RequestRecord& record, bool keep_alive) {
    const AdminAction action = route == Route::kAdd      ? AdminAction::kAdd
                               : route == Route::kRemove ? AdminAction::kRemove
                                                         : AdminAction::kSetRole;
    Cancellation cancellation;
    client_.watch(cancellation);
    Reply answer = co_await administer(action, state_, pool_, request, client_.peer(), cancellation);
    client_.unwatch();
    co_return co_await reply(record, std::move(answer), keep_alive, {});
  }

  Task<bool> reply(RequestRecord& record, Reply answer, bool keep_alive, std::string extra_fields) {
    record.status = answer.status;
    extra_fields += answer.fields;
    const std::string head =
        own_response_head(answer.status, answer.content_type, {Framing::kLength, answer.body.size(), keep_alive, record.id}, extra_fields);
    record.first_byte = RequestRecord::Clock::now();
    // An answer to HEAD has no body whatever its length says: one would be taken for the next answer.
    std::string_view body = answer.body;
    if (record.method == "HEAD") body = {};
    const bool written = co_await client_.write(head, body);
    co_return written&& keep_alive;
  }

  Task<void> refuse_bytes(const ClientConnection::Received& received) {
    state_.counters.bad_requests.fetch_add(1, std::memory_order_relaxed);
    log::debug("{} sent no usable request: {}", client_.peer(), received.error);
    const std::string body = openai_error(received.error_status, received.error);
    const std::string head = own_response_head(received.error_status, "application/json", {Framing::kLength, body.size(), false, {}});
    static_cast<void>(co_await client_.write(head, body));
    co_await client_.close_gently();
  }

  static std::string shown(std::string_view text) {
    std::string printable;
    for (const char c : text.substr(0, 200)) printable += c >= 0x20 && c < 0x7F ? c : '?';
    return printable;
  }

  ClientConnection& client_;
  GatewayState& state_;
  UpstreamPool& pool_;
};

}  // namespace

Task<void> run_session(std::shared_ptr<ClientConnection> client, GatewayState& state, UpstreamPool& pool) {
  Session session(*client, state, pool);
  // While the gateway stops, too: what was sent ahead is answered, and says that the connection ends.
  while (co_await session.serve()) {
  }
  client->close();
}

}  // namespace moonpool::gateway
