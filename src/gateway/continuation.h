// Carries a streamed completion over from an instance that died to another one: what was sent, what the next instance is asked, and how
// its events are made to fit behind those that the client has.
//
// The next instance gets the client's request with the text already sent behind the prompt (/v1/completions), or as an assistant message
// to be continued (/v1/chat/completions: continue_final_message, no generation prompt), and with max_tokens and min_tokens lowered. Where
// the stream carried token ids (vLLM's return_token_ids), prompt and tokens go on as ids, so that no text is tokenized anew. Its events get
// the first stream's id, created and model; the role is not said twice; usage counts the whole answer against the client's own prompt.
//
// Exactness. At temperature 0 the same text in front gives the same text behind, if the tokenizer cuts it as the first instance did. A cut
// behind white space or within a character would not be: so the continuation starts at the last event that ended well, and the next
// instance has to repeat, byte for byte, what was sent behind it. If it does not, the stream ends with an error instead of a wrong answer.
// What cannot be exact is refused with a reason: several choices, echo, suffix, log probabilities, guided output, tools, presence and
// frequency penalties (they count the answer's tokens, not the prompt's), reasoning. Tokens are counted by usage or token ids where the
// stream has them, else by events, so an answer that ends at max_tokens can then end some tokens early or late.
//
// Cost: the text sent so far is kept (bounded). Events are looked at after they went to the client: some 50 ns for one that differs from
// the last in its text alone, as most do, 1.5 us for one that has to be parsed. The request is parsed only when an instance failed.
// Threads: one request's. Ownership: the relay's; `body` has to outlive it.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace moonpool::gateway {

enum class ContinueStreams { kOff, kGreedy, kAlways };
// How the client is told: not at all, with an SSE comment (clients skip it), or with an event named "continued".
enum class ContinueMarker { kOff, kComment, kEvent };

class Continuation {
 public:
  static constexpr std::size_t kHeldAtMost = std::size_t{1} << 20;

  // `exact`: the request is greedy, so the same text must come again. `may_estimate`: where neither token ids nor usage came with the
  // events, their tokens may be counted by events, which engines under load make too few or too many.
  Continuation(std::string_view path, std::string_view body, bool exact, bool may_estimate);

  // These lines went to the client.
  void sent(std::string_view lines);
  // All but [DONE] was sent.
  [[nodiscard]] bool finished();
  // The request for the next instance. kNotSupported with the reason when this stream cannot be continued.
  [[nodiscard]] Result<std::string> next_body();
  // Whole lines of the next instance as the client is to see them, whole events. kNotSupported when they do not fit what was sent.
  [[nodiscard]] Result<std::string> rewrite(std::string_view lines);

  [[nodiscard]] std::uint64_t tokens_sent() const { return now_.tokens; }

 private:
  // How far the stream had come at some event.
  struct Progress {
    std::size_t text = 0;  // bytes
    std::size_t ids = 0;
    std::uint64_t tokens = 0;
  };

  // Most events differ from the one before in their text alone: those need no parser. False when this one does.
  [[nodiscard]] bool sent_like_the_last(std::string_view payload);
  void learn(std::string_view payload, const boost::json::object& event);
  void progress();
  void sent_event(const boost::json::object& event);
  void sent_choice(const boost::json::object& choice);
  // Null when the request can be continued.
  [[nodiscard]] const char* obstacle_in_request();
  [[nodiscard]] const char* lower_limits(boost::json::object& body) const;
  [[nodiscard]] const char* extend_prompt(boost::json::object& body);
  [[nodiscard]] const char* extend_messages(boost::json::object& body) const;
  [[nodiscard]] Status rewrite_event(boost::json::object& event, std::string& out);
  // False when the event has nothing new.
  [[nodiscard]] Result<bool> rewrite_choice(boost::json::object& choice);
  void rewrite_usage(boost::json::object& usage) const;
  void rewrite_identity(boost::json::object& event) const;

  const bool chat_;
  const bool exact_;
  const bool may_estimate_;
  bool estimated_ = false;  // tokens were counted by events
  const std::string_view body_;
  std::optional<boost::json::object> request_;  // parsed when first needed
  const char* obstacle_ = nullptr;              // the first one stands

  std::string text_;                           // of the answer, all that was sent
  std::vector<std::int64_t> ids_;              // the same as token ids, where the stream had them
  std::vector<std::int64_t> prompt_ids_;       //
  Progress now_;                               // after the last event sent
  Progress stable_;                            // after the last one at which the text may be cut
  Progress kept_;                              // where the current continuation started
  Progress before_;                            // all that had been sent when it did: what lies between the two is repeated
  std::size_t repeated_ = 0;                   // bytes of that which have come again
  std::size_t repeated_ids_ = 0;               //
  std::optional<std::int64_t> prompt_tokens_;  // of the client's own prompt
  std::string id_;
  std::string model_;
  std::optional<std::int64_t> created_;
  std::string before_text_;  // the bytes around the text in an event that has only that
  std::string behind_text_;  //
  bool role_sent_ = false;
  bool finish_sent_ = false;
  bool usage_sent_ = false;
};

}  // namespace moonpool::gateway
