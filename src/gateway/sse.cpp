#include "gateway/sse.h"

#include <utility>

namespace moonpool::gateway {

namespace {

bool is_done_line(std::string_view line) {
  constexpr std::string_view kField = "data:";
  if (!line.starts_with(kField)) return false;
  line.remove_prefix(kField.size());
  while (!line.empty() && line.front() == ' ') line.remove_prefix(1);
  while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
  return line == "[DONE]";
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
    if (!std::exchange(mid_line_, false) && is_done_line(lines.substr(0, end))) done_ = true;
    lines.remove_prefix(std::min(end + 1, lines.size()));
  }
}

}  // namespace moonpool::gateway
