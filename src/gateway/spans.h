// A request's spans, and their text for OTLP/HTTP with JSON (opentelemetry.proto.collector.trace.v1, hex ids, nanoseconds as strings).
//
// One span for the request (server), one for its time before the first hop ("queue"), one for each try of each hop (client), whose id the
// instance was sent as parent-id: its own spans hang below. Threads: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "gateway/request_record.h"

namespace moonpool::gateway {

struct Span {
  enum class Kind { kInternal = 1, kServer = 2, kClient = 3 };
  using Value = std::variant<std::string, std::int64_t, double>;

  std::string trace_id;
  std::string id;
  std::string parent_id;  // empty: the trace begins with it
  std::string name;
  Kind kind = Kind::kInternal;
  std::int64_t start_ns = 0;  // since 1970
  std::int64_t end_ns = 0;
  std::vector<std::pair<std::string, Value>> attributes;
  std::string error;  // empty: none
};

// Of a request that has ended and has `spans`. `body` is the client's, for the name of the model.
[[nodiscard]] std::vector<Span> spans_of(const RequestRecord& record, std::string_view body);

// The body of a POST to /v1/traces.
[[nodiscard]] std::string otlp_json(std::string_view service_name, const std::vector<Span>& spans);

}  // namespace moonpool::gateway
