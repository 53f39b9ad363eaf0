#include "gateway/sse.h"

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

bool ends_a_response(std::string_view event) {
  return event == "response.completed" || event == "response.incomplete" || event == "response.failed";
}

}  // namespace

std::string SseStream::feed(std::string bytes) {
  if (!held_.empty()) bytes.insert(0, std::exchange(held_, {}));
  const std::size_t last_end = bytes.rfind('\n');
  const std::size_t whole = last_end == std::string::npos ? 0 : last_end + 1;
  if (bytes.size() - whole > kLongestHeldLine) {
    inspect(std::string_view(bytes).substr(0, whole));
    mid_line_ = true;
    return bytes;
  }
  if (whole < bytes.size()) {
    held_ = bytes.substr(whole);
    bytes.resize(whole);
  }
  inspect(bytes);
  return bytes;
}

std::string SseStream::finish() {
  inspect(held_);
  return std::exchange(held_, {});
}

void SseStream::inspect(std::string_view lines) {
  while (!lines.empty()) {
    const std::size_t end = std::min(lines.find('\n'), lines.size());
    const std::string_view line = lines.substr(0, end);
    if (!std::exchange(mid_line_, false)) {
      if (const auto event = value_of(line, "event:"); event) final_event_ = ends_a_response(*event);
      if (const auto data = value_of(line, "data:"); data && (*data == "[DONE]" || final_event_)) done_ = true;
    }
    lines.remove_prefix(std::min(end + 1, lines.size()));
  }
}

}  // namespace moonpool::gateway
