// Looks into a JSON object without building a document: the raw text of its members, one after the other.
//
// For decisions that may be wrong without harm (which instance has seen this prompt, whose request is this) and for naming the line of a
// setting: structure is followed only as far as needed, text that is no JSON simply ends the walk. Cost: one pass, no allocation.
// Threads: values; the views are into the given text.
#pragma once

#include <cstddef>
#include <string_view>

namespace moonpool::gateway {

class JsonMembers {
 public:
  explicit JsonMembers(std::string_view object);
  // False after the last member, or where the text stops being an object.
  bool next();
  [[nodiscard]] std::string_view key() const { return key_; }      // without quotes, escapes as written
  [[nodiscard]] std::string_view value() const { return value_; }  // as written, strings with their quotes

 private:
  void skip_space();
  // The end of the value that begins at `at`; npos when it does not end.
  [[nodiscard]] std::size_t end_of_value(std::size_t at) const;
  [[nodiscard]] std::size_t end_of_string(std::size_t at) const;

  std::string_view text_;
  std::size_t at_ = 0;
  bool good_ = false;
  std::string_view key_;
  std::string_view value_;
};

// The first member of that name, as written; empty when there is none.
[[nodiscard]] std::string_view json_member(std::string_view object, std::string_view key);
// What decides which KV a request can use, as written; empty where it is not there.
struct PromptParts {
  std::string_view prompt;  // what an instance has to compute: the first of "messages", "prompt" and "input"
  std::string_view model;   // an adapter's name, where the instances serve adapters
  std::string_view cache_salt;
};
[[nodiscard]] PromptParts prompt_parts(std::string_view body);

}  // namespace moonpool::gateway
