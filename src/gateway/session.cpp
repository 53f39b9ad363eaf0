#include "gateway/session.h"

#include <optional>

#include "base/ids.h"
#include "base/logging.h"
#include "gateway/admin.h"
#include "gateway/relay.h"
#include "gateway/request_record.h"

namespace moonpool::gateway {

namespace {

enum class Route { kCompletion, kModels, kHealth, kReady, kStatus, kAddInstance };

struct RouteEntry {
  std::string_view path;
  http::verb method;
  Route route;
};

constexpr RouteEntry kRoutes[] = {
    {"/v1/completions", http::verb::post, Route::kCompletion},
    {"/v1/chat/completions", http::verb::post, Route::kCompletion},
    {"/v1/models", http::verb::get, Route::kModels},
    {"/health", http::verb::get, Route::kHealth},
    {"/ready", http::verb::get, Route::kReady},
    {"/status", http::verb::get, Route::kStatus},
    {"/instances/add", http::verb::post, Route::kAddInstance},
};

// What a client calls its request, when it is fit for a log line and a header; else a short random one.
std::string request_id_of(const RequestParser& request) {
  const std::string_view given = request.headers.get("x-request-id");
  bool printable = !given.empty() && given.size() <= 128;
  for (const char c : given) printable = printable && c > ' ' && c < 0x7F;
  return printable ? std::string(given) : NodeId::generate().to_string();
}

double ms_between(RequestRecord::Time from, RequestRecord::Time to) {
  if (from == RequestRecord::Time{} || to == RequestRecord::Time{}) return 0;
  return std::chrono::duration<double, std::milli>(to - from).count();
}

void log_access(const RequestRecord& record, const GatewayState& state) {
  const bool wrong = record.status >= 500 || record.cut;
  auto level = state.settings.access_log ? spdlog::level::info : spdlog::level::debug;
  if (wrong) level = spdlog::level::warn;
  if (!log::logger().should_log(level)) return;
  const auto ms = [](double value) { return fmt::format("{:.1f}", value); };
  log::logger().log(level, "{} {} {} id={} prefill={} decode={} attempts={} queue_ms={} prefill_ms={} first_byte_ms={} total_ms={}{}{}",
                    record.method, record.path, record.status, record.id, record.prefill.empty() ? "-" : record.prefill,
                    record.decode.empty() ? "-" : record.decode, record.attempts, ms(ms_between(record.received, record.hops_started)),
                    ms(ms_between(record.hops_started, record.prefill_done)), ms(ms_between(record.received, record.first_byte)),
                    ms(ms_between(record.received, record.done)),
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
    RequestParser request(state_.settings.limits.header_bytes, state_.settings.limits.body_bytes);
    const auto received = co_await client_.read_request(request);
    if (!received.got) {
      if (received.error_status != 0) co_await refuse_bytes(received);
      co_return false;
    }
    RequestRecord record;
    record.id = request_id_of(request);
    record.method = request.method_text;
    record.path = std::string(request.path());
    const bool keep_alive = request.keep_alive() && request.version == 11 && !state_.stopping.load(std::memory_order_relaxed);
    const bool again = co_await dispatch(request, record, keep_alive);
    record.done = RequestRecord::Clock::now();
    log_access(record, state_);
    if (!again && !record.client_gone) co_await client_.close_gently();
    co_return again;
  }

 private:
  Task<bool> dispatch(const RequestParser& request, RequestRecord& record, bool keep_alive) {
    const RouteEntry* by_path = nullptr;
    for (const RouteEntry& entry : kRoutes) {
      if (entry.path == record.path) by_path = &entry;
    }
    if (by_path == nullptr) {
      Reply unknown{404, openai_error(404, "there is no " + shown(record.path) + " here: the gateway has " + paths())};
      co_return co_await reply(record, std::move(unknown), keep_alive, {});
    }
    if (by_path->method != request.method) {
      const std::string method(by_path->method == http::verb::post ? "POST" : "GET");
      Reply wrong{405, openai_error(405, record.path + " takes " + method + ", not " + shown(request.method_text))};
      co_return co_await reply(record, std::move(wrong), keep_alive, "Allow: " + method + "\r\n");
    }
    if (by_path->route == Route::kCompletion || by_path->route == Route::kModels) {
      Relay relay(state_, pool_, client_, request, record, keep_alive);
      if (by_path->route == Route::kCompletion) co_return co_await relay.completion();
      co_return co_await relay.forward(state_.decode.empty() ? state_.prefill : state_.decode);
    }
    if (by_path->route == Route::kAddInstance) co_return co_await add(request, record, keep_alive);
    Reply own = own_reply(by_path->route);
    co_return co_await reply(record, std::move(own), keep_alive, {});
  }

  [[nodiscard]] Reply own_reply(Route route) const {
    if (route == Route::kHealth) return health_reply(state_);
    return route == Route::kReady ? ready_reply(state_) : status_reply(state_);
  }

  static std::string paths() {
    std::string all;
    for (const RouteEntry& entry : kRoutes) all.append(all.empty() ? "" : ", ").append(entry.path);
    return all;
  }

  Task<bool> add(const RequestParser& request, RequestRecord& record, bool keep_alive) {
    Cancellation cancellation;
    client_.watch(cancellation);
    Reply answer = co_await add_instance(state_, pool_, request, client_.peer(), cancellation);
    client_.unwatch();
    co_return co_await reply(record, std::move(answer), keep_alive, {});
  }

  Task<bool> reply(RequestRecord& record, Reply answer, bool keep_alive, std::string extra_fields) {
    record.status = answer.status;
    const std::string head =
        own_response_head(answer.status, "application/json", {Framing::kLength, answer.body.size(), keep_alive, record.id}, extra_fields);
    record.first_byte = RequestRecord::Clock::now();
    const bool written = co_await client_.write(head, answer.body);
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
  while (co_await session.serve()) {
    if (state.stopping.load(std::memory_order_relaxed)) break;
  }
  client->close();
}

}  // namespace moonpool::gateway
