#include "gateway/sse.h"

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <optional>
#include <utility>

namespace moonpool::gateway {

namespace {

// What stands after "field:" in the line; nullopt for another line.
std::optional<std::string_view> value_of(std::string_view line, std::string_view field) {
  if (!line.starts_with(field)) return std::nullopt;
  line.remove_prefix(field.size());
  while (!line.empty() && line.front() == ' ') line.remove_prefix(1);
  while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
  return line;
}

// As vLLM writes it, now and in older versions.
bool is_error(std::string_view payload) {
  return payload.starts_with(R"({"error")") || payload.starts_with(R"({"object":"error")") || payload.starts_with(R"({"object": "error")");
}

bool ends_a_response(std::string_view event) {
  return event == "response.completed" || event == "response.incomplete" || event == "response.failed";
}

}  // namespace

std::string SseStream::feed(std::string bytes) {
  if (!held_.empty()) bytes.insert(0, std::exchange(held_, {}));
  const std::size_t last_end = bytes.rfind('\n');
  const std::size_t whole = last_end == std::string::npos ? 0 : last_end + 1;
  if (has_error()) {
    held_ = std::move(bytes);
    return {};
  }
  if (bytes.size() - whole > kLongestHeldLine) {
    const std::size_t passed = inspect(std::string_view(bytes).substr(0, whole));
    if (passed < whole) {
      held_ = bytes.substr(passed);
      bytes.resize(passed);
      return bytes;
    }
    mid_line_ = true;
    between_events_ = false;
    return bytes;
  }
  const std::size_t passed = inspect(std::string_view(bytes).substr(0, whole));
  if (passed < bytes.size()) {
    held_ = bytes.substr(passed);
    bytes.resize(passed);
  }
  return bytes;
}

std::string SseStream::finish() {
  std::string rest = std::exchange(held_, {});
  const std::size_t passed = inspect(rest);
  rest.resize(passed);
  return rest;
}

std::string SseStream::pass_error() {
  errors_pass_ = true;
  return feed({});
}

std::size_t SseStream::inspect(std::string_view lines) {
  const std::size_t all = lines.size();
  while (!lines.empty()) {
    const std::size_t end = std::min(lines.find('\n'), lines.size());
    const std::string_view line = lines.substr(0, end);
    if (!std::exchange(mid_line_, false)) {
      if (const auto event = value_of(line, "event:"); event) final_event_ = ends_a_response(*event);
      if (const auto payload = value_of(line, "data:"); payload) {
        if (*payload == "[DONE]" || final_event_) done_ = true;
        if (!errors_pass_ && is_error(*payload)) {
          error_ = *payload;
          return all - lines.size();
        }
        if (*payload != "[DONE]" && !std::exchange(event_has_data_, true)) ++data_events_;
      }
    }
    between_events_ = line.empty() || line == "\r";
    if (between_events_) event_has_data_ = false;
    lines.remove_prefix(std::min(end + 1, lines.size()));
  }
  return all;
}

unsigned status_in_error(std::string_view payload) {
  boost::system::error_code error;
  const auto document = boost::json::parse(boost::json::string_view(payload.data(), payload.size()), error);
  if (error || !document.is_object()) return 500;
  const auto* holder = document.get_object().if_contains("error");
  const auto& fields = holder != nullptr && holder->is_object() ? holder->get_object() : document.get_object();
  const auto* code = fields.if_contains("code");
  if (code == nullptr) return 500;
  const auto number = code->to_number<unsigned>(error);
  return error ? 500 : number;
}

}  // namespace moonpool::gateway
