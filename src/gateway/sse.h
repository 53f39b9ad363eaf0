// Watches a stream of server-sent events as it passes through: whether it came to its end ("data: [DONE]",
// or the final event of /v1/responses, which has no [DONE]), and where lines end.
//
// Only whole lines are let through, so that an error event can follow at any time without being glued to half an event. Engines write
// whole events, so this holds nothing back in practice; a line longer than kLongestHeldLine passes in parts.
// An instance that fails within its stream may still have the time to say so: vLLM sends an error as an event, and [DONE] behind it. Such
// an event and all that follows is held back, so that the request can go on elsewhere.
// Cost: one scan per byte, no copy where the bytes end with a line. Threads: a value, one stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moonpool::gateway {

class SseStream {
 public:
  static constexpr std::size_t kLongestHeldLine = std::size_t{256} * 1024;

  // What may be passed on now, out of what was held and `bytes`.
  [[nodiscard]] std::string feed(std::string bytes);
  // The stream has ended: what is still held. A last line without its line end counts as a line.
  [[nodiscard]] std::string finish();

  [[nodiscard]] bool done() const { return done_; }  // the final event was seen
  // Events with data that were let through so far; [DONE] is none, nor is one of more than kLongestHeldLine.
  [[nodiscard]] std::uint64_t data_events() const { return data_events_; }
  // The event of an error was met; what it carries. Nothing more is let through.
  [[nodiscard]] bool has_error() const { return error_.has_value() && !errors_pass_; }
  [[nodiscard]] std::string_view error() const { return *error_; }
  // Lets the error and what was held behind it through after all.
  [[nodiscard]] std::string pass_error();
  // The bytes passed on so far end with a blank line, or there are none.
  [[nodiscard]] bool between_events() const { return between_events_; }
  // The bytes passed on so far end within a line (only after a line of more than kLongestHeldLine).
  [[nodiscard]] bool mid_line() const { return mid_line_; }

 private:
  // How many of these bytes may be passed on.
  [[nodiscard]] std::size_t inspect(std::string_view lines);

  std::string held_;
  std::uint64_t data_events_ = 0;
  bool event_has_data_ = false;  // the event in progress was counted
  bool done_ = false;
  bool final_event_ = false;  // within an event that is the last one of a response
  bool mid_line_ = false;
  bool between_events_ = true;
  bool errors_pass_ = false;
  std::optional<std::string> error_;
};

// The HTTP status that an event's error names; 500 when it names none.
[[nodiscard]] unsigned status_in_error(std::string_view payload);

}  // namespace moonpool::gateway
