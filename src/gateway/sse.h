// Watches a stream of server-sent events as it passes through: whether it came to its end ("data: [DONE]",
// or the final event of /v1/responses, which has no [DONE]), and where lines end.
//
// Only whole lines are let through, so that an error event can follow at any time without being glued to half an event. Engines write
// whole events, so this holds nothing back in practice; a line longer than kLongestHeldLine passes in parts.
// Cost: one scan per byte, no copy where the bytes end with a line. Threads: a value, one stream.
#pragma once

#include <cstddef>
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
  // The bytes passed on so far end within a line (only after a line of more than kLongestHeldLine).
  [[nodiscard]] bool mid_line() const { return mid_line_; }

 private:
  void inspect(std::string_view lines);

  std::string held_;
  bool done_ = false;
  bool final_event_ = false;  // within an event that is the last one of a response
  bool mid_line_ = false;
};

}  // namespace moonpool::gateway
