#include "gateway/kv_events/token_ids.h"

#include <charconv>

#include "gateway/json_member.h"

namespace moonpool::gateway {

namespace {

std::size_t skip_space(std::string_view text, std::size_t at) {
  while (at < text.size() && (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r')) ++at;
  return at;
}

}  // namespace

std::vector<std::uint32_t> parse_token_ids(std::string_view list, std::vector<std::size_t>* ends) {
  std::vector<std::uint32_t> tokens;
  if (list.empty() || list[0] != '[') return {};
  if (ends != nullptr) ends->clear();
  for (std::size_t at = 1; tokens.size() < kTokensAtMost; ++at) {
    at = skip_space(list, at);
    std::uint32_t token = 0;
    const auto [end, error] = std::from_chars(list.data() + at, list.data() + list.size(), token);
    if (error != std::errc()) return {};
    tokens.push_back(token);
    at = static_cast<std::size_t>(end - list.data());
    if (ends != nullptr) ends->push_back(at);
    at = skip_space(list, at);
    if (at >= list.size()) return {};
    if (list[at] == ']') break;
    if (list[at] != ',') return {};
  }
  return tokens;
}

std::string_view prompt_token_ids_of(std::string_view answer) {
  if (const auto top = json_member(answer, "prompt_token_ids"); top.starts_with('[')) return top;
  const auto choices = json_member(answer, "choices");
  if (choices.empty()) return {};
  const auto ids = json_member(choices.substr(1), "prompt_token_ids");
  return ids.starts_with('[') ? ids : std::string_view();
}

}  // namespace moonpool::gateway
