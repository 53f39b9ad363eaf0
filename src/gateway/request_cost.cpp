#include "gateway/request_cost.h"

#include <algorithm>
#include <charconv>

#include "gateway/api_keys.h"
#include "gateway/json_member.h"

namespace moonpool::gateway {

namespace {

constexpr std::uint64_t kBytesAToken = 4;
constexpr std::uint64_t kAnswerAtMost = 4096;
constexpr std::int64_t kLongestTimeoutMs = 86'400'000;

// Empty unless all of it is a whole number.
std::optional<std::int64_t> number_in(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::uint64_t tokens_of_prompt(std::string_view prompt) {
  const std::size_t first = prompt.find_first_not_of("[ \t\r\n");
  const bool ids = prompt.starts_with('[') && first != std::string_view::npos && prompt[first] >= '0' && prompt[first] <= '9';
  if (ids) return static_cast<std::uint64_t>(std::count(prompt.begin(), prompt.end(), ',')) + 1;
  return std::max<std::uint64_t>(1, (prompt.size() + kBytesAToken - 1) / kBytesAToken);
}

}  // namespace

RequestCost request_cost(std::string_view body) {
  RequestCost cost;
  bool has_prompt = false;
  JsonMembers members(body);
  while (members.next()) {
    const std::string_view key = members.key();
    if (key == "messages" || key == "prompt" || key == "input") {
      cost.prompt_tokens = std::max(cost.prompt_tokens, tokens_of_prompt(members.value()));
      has_prompt = true;
    } else if (key == "max_tokens" || key == "max_completion_tokens" || key == "max_output_tokens") {
      const auto number = number_in(members.value());
      if (number && *number >= 0) cost.answer_tokens = std::min<std::uint64_t>(static_cast<std::uint64_t>(*number), kAnswerAtMost);
    } else if (key == "priority") {
      const auto number = number_in(members.value());
      if (number) cost.priority = static_cast<int>(std::clamp<std::int64_t>(*number, -kPriorityAtMost, kPriorityAtMost));
    }
  }
  if (!has_prompt) cost.prompt_tokens = tokens_of_prompt(body);
  return cost;
}

std::optional<std::uint64_t> usage_tokens(std::string_view answer) {
  constexpr std::string_view kName = "\"usage\"";  // within a string the quotes would be escaped
  for (std::size_t at = answer.rfind(kName); at != std::string_view::npos; at = at == 0 ? at : answer.rfind(kName, at - 1)) {
    const std::size_t value = answer.find_first_not_of(": \t\r\n", at + kName.size());
    if (value != std::string_view::npos && answer[value] == '{') {
      const auto number = number_in(json_member(answer.substr(value), "total_tokens"));
      if (number && *number >= 0) return static_cast<std::uint64_t>(*number);
    }
    if (at == 0) break;
  }
  return std::nullopt;
}

std::optional<std::chrono::milliseconds> parse_timeout_ms(std::string_view value) {
  const auto number = number_in(value);
  if (!number || *number < 1 || *number > kLongestTimeoutMs) return std::nullopt;
  return std::chrono::milliseconds(*number);
}

}  // namespace moonpool::gateway
