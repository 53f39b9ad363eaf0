#include "gateway/trace_context.h"

#include <algorithm>
#include <cstdint>
#include <random>

namespace moonpool::gateway {

namespace {

// Version 00: two digits, trace-id, parent-id, flags, with dashes between them.
constexpr std::size_t kTraceIdAt = 3;
constexpr std::size_t kTraceIdSize = 32;
constexpr std::size_t kParentIdAt = kTraceIdAt + kTraceIdSize + 1;
constexpr std::size_t kParentIdSize = 16;
constexpr std::size_t kFlagsAt = kParentIdAt + kParentIdSize + 1;
constexpr std::size_t kSize = kFlagsAt + 2;

constexpr std::string_view kDigits = "0123456789abcdef";

// Lower case alone, as the recommendation asks.
bool is_hex(std::string_view text) { return text.find_first_not_of(kDigits) == std::string_view::npos; }

bool is_id(std::string_view text) { return is_hex(text) && text.find_first_not_of('0') != std::string_view::npos; }

std::uint64_t random_word() {
  static thread_local std::mt19937_64 random = [] {
    std::random_device entropy;
    std::seed_seq seed{entropy(), entropy(), entropy(), entropy(), entropy(), entropy(), entropy(), entropy()};
    return std::mt19937_64(seed);
  }();
  for (;;) {
    if (const std::uint64_t word = random(); word != 0) return word;
  }
}

std::array<char, 16> hex_of(std::uint64_t word) {
  std::array<char, 16> text{};
  for (std::size_t i = text.size(); i-- > 0; word >>= 4) text[i] = kDigits[word & 0xF];
  return text;
}

}  // namespace

TraceContext TraceContext::of(const HeaderFields& headers, bool sample) {
  const HeaderField* found = nullptr;
  bool several = false;
  for (const HeaderField& field : headers.all()) {
    if (!equals_ignoring_case(field.name, "traceparent")) continue;
    several = found != nullptr;
    found = &field;
    if (several) break;
  }
  if (found == nullptr || several) return start(sample);
  const auto given = parse(found->value);
  return given ? *given : start(sample);
}

std::optional<TraceContext> TraceContext::parse(std::string_view traceparent) {
  if (traceparent.size() < kSize) return std::nullopt;
  const std::string_view version = traceparent.substr(0, 2);
  if (!is_hex(version) || version == "ff") return std::nullopt;
  if (traceparent.size() > kSize && (version == "00" || traceparent[kSize] != '-')) return std::nullopt;
  for (const std::size_t dash : {kTraceIdAt - 1, kParentIdAt - 1, kFlagsAt - 1}) {
    if (traceparent[dash] != '-') return std::nullopt;
  }
  const std::string_view trace_id = traceparent.substr(kTraceIdAt, kTraceIdSize);
  const std::string_view flags = traceparent.substr(kFlagsAt, 2);
  if (!is_id(trace_id) || !is_id(traceparent.substr(kParentIdAt, kParentIdSize)) || !is_hex(flags)) return std::nullopt;
  TraceContext context;
  const std::string_view parent_id = traceparent.substr(kParentIdAt, kParentIdSize);
  std::copy(trace_id.begin(), trace_id.end(), context.trace_id_.begin());
  std::copy(parent_id.begin(), parent_id.end(), context.parent_id_.begin());
  context.sampled_ = (kDigits.find(flags[1]) & 1U) != 0;
  context.came_with_request_ = true;
  return context;
}

TraceContext TraceContext::start(bool sample) {
  TraceContext context;
  const auto high = hex_of(random_word());
  const auto low = hex_of(random_word());
  std::copy(low.begin(), low.end(), std::copy(high.begin(), high.end(), context.trace_id_.begin()));
  context.sampled_ = sample;
  return context;
}

std::string TraceContext::new_span_id() {
  const auto id = hex_of(random_word());
  return {id.data(), id.size()};
}

std::string TraceContext::hop_field(std::string_view span_id) const {
  std::string line = "traceparent: 00-";
  line.reserve(80);
  line.append(trace_id()).append("-").append(span_id).append(sampled_ ? "-01\r\n" : "-00\r\n");
  return line;
}

std::string random_request_id() {
  std::string id;
  id.reserve(32);
  for (int half = 0; half < 2; ++half) {
    const auto digits = hex_of(random_word());
    id.append(digits.data(), digits.size());
  }
  return id;
}

}  // namespace moonpool::gateway
