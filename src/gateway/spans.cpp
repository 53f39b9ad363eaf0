#include "gateway/spans.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <chrono>
#include <iterator>

#include "gateway/instance_name.h"
#include "gateway/json_member.h"

namespace moonpool::gateway {

namespace {

constexpr std::size_t kTextAtMost = 256;
constexpr int kStatusError = 2;

// Bytes from outside as a JSON string: what is not ASCII might not be UTF-8, which a collector would refuse with all the rest.
std::string json_text(std::string_view text) {
  std::string ascii(text.substr(0, kTextAtMost));
  for (char& c : ascii) c = static_cast<unsigned char>(c) < 0x80 ? c : '?';
  return boost::json::serialize(boost::json::string_view(ascii.data(), ascii.size()));
}

// The steady clock's moments as the wall clock has them now.
class WallClock {
 public:
  [[nodiscard]] std::int64_t ns(RequestRecord::Time moment) const {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(wall_.time_since_epoch() - (steady_ - moment)).count();
  }

 private:
  const std::chrono::system_clock::time_point wall_ = std::chrono::system_clock::now();
  const RequestRecord::Time steady_ = RequestRecord::Clock::now();
};

std::string model_in(std::string_view body) {
  const std::string_view value = json_member(body, "model");
  return value.size() > 2 && value.front() == '"' ? std::string(value.substr(1, value.size() - 2)) : std::string();
}

Span request_span(const RequestRecord& record, std::string_view body, const WallClock& clock) {
  Span span;
  span.id = record.spans->id;
  span.parent_id = record.trace.parent_id();
  span.name = record.method + " " + record.path;
  span.kind = Span::Kind::kServer;
  span.start_ns = clock.ns(record.received);
  span.end_ns = clock.ns(record.done);
  auto& attributes = span.attributes;
  attributes = {{"http.request.method", record.method}, {"url.path", record.path}, {"moonpool.request_id", record.id}};
  if (record.status != 0) attributes.emplace_back("http.response.status_code", std::int64_t{record.status});
  if (auto model = model_in(body); !model.empty()) attributes.emplace_back("gen_ai.request.model", std::move(model));
  if (!record.prefill.empty()) attributes.emplace_back("moonpool.prefill", record.prefill);
  if (!record.decode.empty()) attributes.emplace_back("moonpool.decode", record.decode);
  attributes.emplace_back("moonpool.attempts", std::int64_t{record.attempts});
  for (const auto& [name, moment] :
       {std::pair("moonpool.queue_ms", record.hops_started), std::pair("moonpool.prefill_done_ms", record.prefill_done),
        std::pair("moonpool.first_byte_ms", record.first_byte), std::pair("moonpool.last_byte_ms", record.done)}) {
    if (moment == RequestRecord::Time{}) continue;
    attributes.emplace_back(name, std::chrono::duration<double, std::milli>(moment - record.received).count());
  }
  if (record.client_gone) attributes.emplace_back("moonpool.client_gone", std::int64_t{1});
  if (record.status >= 500 || record.cut) span.error = record.error.empty() ? "HTTP " + std::to_string(record.status) : record.error;
  return span;
}

Span hop_span(const RequestSpans::Hop& hop, std::size_t number, const WallClock& clock) {
  Span span;
  span.id = hop.id;
  span.name = hop.role;
  span.kind = Span::Kind::kClient;
  span.start_ns = clock.ns(hop.begun);
  span.end_ns = clock.ns(hop.ended);
  if (const auto name = InstanceName::parse(hop.instance); name.ok()) {
    span.attributes = {{"server.address", name->host()}, {"server.port", std::int64_t{name->port()}}};
  }
  span.attributes.emplace_back("moonpool.hop", static_cast<std::int64_t>(number));
  if (hop.status != 0) span.attributes.emplace_back("http.response.status_code", std::int64_t{hop.status});
  span.error = hop.error;
  return span;
}

void write_value(std::string& text, const Span::Value& value) {
  auto out = std::back_inserter(text);
  if (const auto* words = std::get_if<std::string>(&value); words != nullptr) {
    fmt::format_to(out, R"({{"stringValue":{}}})", json_text(*words));
  } else if (const auto* whole = std::get_if<std::int64_t>(&value); whole != nullptr) {
    fmt::format_to(out, R"({{"intValue":"{}"}})", *whole);
  } else {
    fmt::format_to(out, R"({{"doubleValue":{}}})", std::get<double>(value));
  }
}

void write_span(std::string& text, const Span& span) {
  auto out = std::back_inserter(text);
  fmt::format_to(out, R"({{"traceId":"{}","spanId":"{}",)", span.trace_id, span.id);
  if (!span.parent_id.empty()) fmt::format_to(out, R"("parentSpanId":"{}",)", span.parent_id);
  fmt::format_to(out, R"("name":{},"kind":{},"startTimeUnixNano":"{}","endTimeUnixNano":"{}","attributes":[)", json_text(span.name),
                 static_cast<int>(span.kind), span.start_ns, span.end_ns);
  for (std::size_t i = 0; i < span.attributes.size(); ++i) {
    fmt::format_to(out, R"({}{{"key":"{}","value":)", i == 0 ? "" : ",", span.attributes[i].first);
    write_value(text, span.attributes[i].second);
    text += '}';
  }
  text += "],\"status\":{";
  if (!span.error.empty()) fmt::format_to(out, R"("code":{},"message":{})", kStatusError, json_text(span.error));
  text += "}}";
}

}  // namespace

std::vector<Span> spans_of(const RequestRecord& record, std::string_view body) {
  const WallClock clock;
  std::vector<Span> spans;
  spans.reserve(record.spans->hops.size() + 2);
  spans.push_back(request_span(record, body, clock));
  if (record.hops_started != RequestRecord::Time{}) {
    Span queue;
    queue.id = TraceContext::new_span_id();
    queue.name = "queue";
    queue.start_ns = clock.ns(record.received);
    queue.end_ns = clock.ns(record.hops_started);
    spans.push_back(std::move(queue));
  }
  for (std::size_t i = 0; i < record.spans->hops.size(); ++i) spans.push_back(hop_span(record.spans->hops[i], i + 1, clock));
  for (std::size_t i = 0; i < spans.size(); ++i) {
    spans[i].trace_id = record.trace.trace_id();
    if (i > 0) spans[i].parent_id = record.spans->id;
  }
  return spans;
}

std::string otlp_json(std::string_view service_name, const std::vector<Span>& spans) {
  std::string text = R"({"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":)" +
                     json_text(service_name) + R"(}}]},"scopeSpans":[{"scope":{"name":"moonpool.gateway"},"spans":[)";
  text.reserve(text.size() + spans.size() * 1024);
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (i > 0) text += ',';
    write_span(text, spans[i]);
  }
  return text + "]}]}]}";
}

}  // namespace moonpool::gateway
