// The W3C trace context of one request (level 1, the Recommendation): which trace it belongs to, and what the next hop is told.
//
// A request that brings one valid `traceparent` stays in its trace: each hop is sent the same trace-id and sampled flag with a parent-id of
// its own, and `tracestate` as it came. With none, with several, or with one that is not valid, a new trace starts here and a `tracestate`
// is dropped, because it would belong to another trace. A version above 00 is read as far as version 00 goes and passed on as 00; flags
// other than "sampled" are not passed on. Where spans are exported (spans.h), a hop's parent-id is its span's id.
// Cost: some comparisons a header field; random numbers from a generator of the thread. Threads: a value.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "gateway/http_message.h"

namespace moonpool::gateway {

class TraceContext {
 public:
  TraceContext() = default;  // no trace yet: only to be assigned to
  // The request's own, or a new one whose sampled flag is `sample`.
  [[nodiscard]] static TraceContext of(const HeaderFields& headers, bool sample);
  // Nothing where the value is not valid.
  [[nodiscard]] static std::optional<TraceContext> parse(std::string_view traceparent);
  [[nodiscard]] static TraceContext start(bool sample);

  [[nodiscard]] std::string_view trace_id() const { return {trace_id_.data(), trace_id_.size()}; }  // 32 hex digits
  [[nodiscard]] bool sampled() const { return sampled_; }
  // The trace came with the request, so its `tracestate` belongs to it.
  [[nodiscard]] bool came_with_request() const { return came_with_request_; }
  // The span that the request came from, 16 hex digits; empty for a trace that starts here.
  [[nodiscard]] std::string_view parent_id() const { return {parent_id_.data(), came_with_request_ ? parent_id_.size() : 0}; }
  // 16 hex digits, never all zero.
  [[nodiscard]] static std::string new_span_id();
  // The header line for one hop, whose parent-id is the hop's span.
  [[nodiscard]] std::string hop_field(std::string_view span_id) const;
  // The same, with a parent-id that no other hop has.
  [[nodiscard]] std::string hop_field() const { return hop_field(new_span_id()); }

 private:
  std::array<char, 32> trace_id_{};
  std::array<char, 16> parent_id_{};
  bool sampled_ = false;
  bool came_with_request_ = false;
};

// 32 random hex digits for a request that came without an id of its own. Not a secret.
[[nodiscard]] std::string random_request_id();

}  // namespace moonpool::gateway
